//! The proxy of a run: CONNECT and plain HTTP to the hosts on its list, every byte accounted.

pub use super::egress_parse::{
    Asked, Connect, HeadError, HelloError, Plain, canonical_host, client_hello_sni, parse_connect,
    parse_request,
};
