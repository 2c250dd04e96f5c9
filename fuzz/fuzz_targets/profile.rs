//! The shared AWS files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aws_ecr_proxy::aws::fuzz::profile(bytes));
