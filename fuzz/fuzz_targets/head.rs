//! Request heads: every head that the door passes, tiny_http accepts.
#![no_main]

use std::sync::{Arc, LazyLock};

use aws_ecr_proxy::door::Lanes;
use aws_ecr_proxy::door::fuzz::head;
use aws_ecr_proxy::message::{Answer, Desk, Reply};
use aws_ecr_proxy::pool::{Decide, Pool};
use aws_ecr_proxy_fuzz::show;

/// tiny_http as the proxy runs it.
static LANES: LazyLock<Lanes> = LazyLock::new(|| {
    let desk = Arc::new(Desk::default());
    let decide: Arc<Decide> = Arc::new(|_| Answer::Now(Reply::new(200, "text/plain", "")));
    let on_lost: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(|name: &str| panic!("{name} ended"));
    let pool = Pool::start(1, &desk, &decide, &on_lost).expect("workers");
    let lanes = Lanes::open(pool.address(), 2, Box::new(|| panic!("lanes lost"))).expect("lanes");
    pool.seal().expect("a sealed socket");
    lanes
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| show(&head(bytes, &LANES)));
