//! See `postern_fuzz::stun_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postern_fuzz::stun_message(data));
