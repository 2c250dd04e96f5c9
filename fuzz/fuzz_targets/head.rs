//! Request heads: what the door passes means the same when it is read again.
#![no_main]

use aws_ecr_proxy_fuzz::show;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| show(&aws_ecr_proxy::door::fuzz::head(bytes)));
