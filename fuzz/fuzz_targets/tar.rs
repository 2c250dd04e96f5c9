//! Archives for `import`.
#![no_main]

use aws_ecr_proxy_fuzz::show;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| show(&aws_ecr_proxy::cache::archive::fuzz::tar(bytes)));
