//! The running proxy on loopback, with a TLS upstream and real TLS clients.
//!
//! Everything is spoken by hand over TLS streams, so that a test can send what no client library
//! would.

mod admission;
mod live;
mod setting;
mod slices;
mod stock_clients;
mod turn;
