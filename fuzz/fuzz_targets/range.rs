//! `Range` and the conditions.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aws_ecr_proxy::proxy::fuzz::range(bytes));
