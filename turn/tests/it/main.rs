//! Tests of the whole server: datagrams and time in, actions out.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod allocate;
mod client;
mod corpus;
mod credentials;
mod drain;
mod families;
mod heap;
mod hostile;
mod icmp;
mod lab;
mod limits;
mod mobility;
mod network;
mod peers;
mod properties;
mod relay;
mod requests;
mod rest_credentials;
mod rfc8489_credentials;
mod shards;
mod swap;
mod tcp_relay;
