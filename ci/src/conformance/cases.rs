//! The cases, by what they are about.

mod algorithms;
mod allocate;
mod authentication;
mod channel;
mod message;
mod mobility;
mod permission;
mod refresh;
mod relaying;
mod stream;
mod tcp_relay;

use super::case::Case;

/// All of them.
pub(super) const ALL: &[&[Case]] = &[
    message::CASES,
    authentication::CASES,
    algorithms::CASES,
    allocate::CASES,
    refresh::CASES,
    permission::CASES,
    channel::CASES,
    relaying::CASES,
    stream::CASES,
    tcp_relay::CASES,
    mobility::CASES,
];
