//! Device mapper (Linux `include/uapi/linux/dm-ioctl.h`, protocol version 4): just enough to make
//! one read-only device with one target and start it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct dm_ioctl` is this long, and the kernel takes its length from the ioctl number.
const HEADER: usize = 312;
/// `struct dm_target_spec`.
const TARGET_SPEC: usize = 40;
/// Room for the header, the target and its parameters.
const BUFFER: usize = 4096;
/// `DM_NAME_LEN` and `DM_UUID_LEN`, closing zero included.
const NAME_LENGTH: usize = 128;
const UUID_LENGTH: usize = 129;
/// `DM_READONLY_FLAG`.
const READ_ONLY: u32 = 1;

/// A control buffer: the header, then one target.
///
/// The ioctls below are declared with `Header`, so that their numbers come out right, and are
/// given the whole buffer; `data_size` tells the kernel how long it really is.
#[repr(C, align(8))]
struct Buffer {
    bytes: [u8; BUFFER],
}

/// Only its size matters, see [`Buffer`].
#[repr(C, align(8))]
struct Header {
    bytes: [u8; HEADER],
}

mod ioctl {
    nix::ioctl_readwrite!(create, 0xfd, 3, super::Header);
    nix::ioctl_readwrite!(suspend, 0xfd, 6, super::Header);
    nix::ioctl_readwrite!(load, 0xfd, 9, super::Header);
}

/// A device number as the kernel reports it (`huge_encode_dev`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceNumber {
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
}

/// Makes the read-only device `name`, `sectors` long, with one target, and starts it.
///
/// `control` is `/dev/mapper/control`, opened for reading and writing. `target` and `parameters`
/// are a line of a device-mapper table, such as `verity` and `1 /dev/sda2 /dev/sda1 ...`.
///
/// # Errors
///
/// Returns `InvalidInput` for a text that does not fit, and the error of the ioctl that the
/// kernel refused; a table that it dislikes is named in the kernel's log.
pub fn create_read_only(
    control: &File,
    name: &str,
    uuid: &str,
    sectors: u64,
    target: &str,
    parameters: &str,
) -> io::Result<DeviceNumber> {
    let mut buffer = header(name, uuid, 0, 0)?;
    call(control, &mut buffer, ioctl::create)?;
    let device = u64::from_ne_bytes(slice_at(&buffer.bytes, 40));

    let mut buffer = header(name, "", READ_ONLY, 1)?;
    put_target(&mut buffer.bytes, sectors, target, parameters)?;
    call(control, &mut buffer, ioctl::load)?;

    // Suspend without DM_SUSPEND_FLAG is "resume": the loaded table becomes the live one.
    let mut buffer = header(name, "", 0, 0)?;
    call(control, &mut buffer, ioctl::suspend)?;
    Ok(DeviceNumber {
        major: (device >> 8) & 0xfff,
        minor: (device & 0xff) | ((device >> 12) & 0xf_ff00),
    })
}

type Ioctl = unsafe fn(i32, *mut Header) -> nix::Result<i32>;

fn call(control: &File, buffer: &mut Buffer, ioctl: Ioctl) -> io::Result<()> {
    let header = std::ptr::from_mut(buffer).cast::<Header>();
    // SAFETY: `header` points to a `Buffer`, which is as aligned as `Header` and longer; its
    // `data_size` field says how many bytes the kernel may read and write, and that is BUFFER.
    unsafe { ioctl(control.as_raw_fd(), header) }?;
    Ok(())
}

fn header(name: &str, uuid: &str, flags: u32, targets: u32) -> io::Result<Buffer> {
    let mut buffer = Buffer { bytes: [0; BUFFER] };
    let bytes = &mut buffer.bytes;
    let size = u32::try_from(BUFFER).map_err(io::Error::other)?;
    let start = u32::try_from(HEADER).map_err(io::Error::other)?;
    put(bytes, 0, &4_u32.to_ne_bytes())?;
    put(bytes, 12, &size.to_ne_bytes())?;
    put(bytes, 16, &start.to_ne_bytes())?;
    put(bytes, 20, &targets.to_ne_bytes())?;
    put(bytes, 28, &flags.to_ne_bytes())?;
    put_text(bytes, 48, name, NAME_LENGTH)?;
    put_text(bytes, 48 + NAME_LENGTH, uuid, UUID_LENGTH)?;
    Ok(buffer)
}

fn put_target(bytes: &mut [u8], sectors: u64, target: &str, parameters: &str) -> io::Result<()> {
    let length =
        u32::try_from((TARGET_SPEC + parameters.len() + 8) & !7).map_err(io::Error::other)?;
    put(bytes, HEADER + 8, &sectors.to_ne_bytes())?;
    put(bytes, HEADER + 20, &length.to_ne_bytes())?;
    put_text(bytes, HEADER + 24, target, 16)?;
    let at = HEADER + TARGET_SPEC;
    put_text(bytes, at, parameters, BUFFER - at)
}

fn put_text(bytes: &mut [u8], at: usize, text: &str, room: usize) -> io::Result<()> {
    if text.len() >= room || text.contains('\0') {
        let message = format!("`{text}` does not fit into {room} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    put(bytes, at, text.as_bytes())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> io::Result<()> {
    let Some(room) = bytes.get_mut(at..at + value.len()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too long for the buffer"));
    };
    room.copy_from_slice(value);
    Ok(())
}

fn slice_at(bytes: &[u8; BUFFER], at: usize) -> [u8; 8] {
    std::array::from_fn(|index| bytes[at + index])
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{BUFFER, HEADER, create_read_only, header, put_target};

    #[test]
    fn the_header_is_laid_out_as_the_kernels() {
        let buffer = header("root", "POSTERN-root", 1, 1).unwrap();

        assert_eq!(buffer.bytes[0..4], 4_u32.to_ne_bytes());
        assert_eq!(buffer.bytes[12..16], 4096_u32.to_ne_bytes());
        assert_eq!(buffer.bytes[16..20], 312_u32.to_ne_bytes());
        assert_eq!(&buffer.bytes[48..53], b"root\0");
        assert_eq!(&buffer.bytes[176..189], b"POSTERN-root\0");
    }

    #[test]
    fn a_target_is_padded_to_eight_bytes() {
        let mut bytes = [0; BUFFER];
        put_target(&mut bytes, 8, "verity", "1 a b").unwrap();

        assert_eq!(bytes[HEADER + 20..HEADER + 24], 48_u32.to_ne_bytes());
        assert_eq!(&bytes[HEADER + 40..HEADER + 46], b"1 a b\0");
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused_before_any_call() {
        let null = File::open("/dev/null").unwrap();
        let long = "x".repeat(128);

        assert!(create_read_only(&null, &long, "", 8, "verity", "").is_err());
    }
}
