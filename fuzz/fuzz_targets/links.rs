//! `Link` and `Location` on their way to the client.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aws_ecr_proxy::proxy::fuzz::links(bytes));
