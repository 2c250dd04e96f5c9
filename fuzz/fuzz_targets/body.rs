//! Request bodies, with a length or chunked.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aws_ecr_proxy::door::fuzz::body(bytes));
