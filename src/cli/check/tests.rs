//! The table and its limits; what the steps find is tested with the binary (`tests/it/check.rs`).

use std::ffi::OsString;
use std::sync::mpsc::channel;

use super::super::tests::try_run;
use super::*;
use crate::config::{self, Arguments};

const SHORT: Duration = Duration::from_millis(20);

/// What a step without a context gets.
fn nothing() -> Arc<()> {
    Arc::default()
}

fn checked(total: Duration, steps: impl FnOnce(&mut Check<'_, '_>)) -> (u8, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut streams = Streams {
        out: &mut out,
        err: &mut err,
    };
    let mut check = Check {
        streams: &mut streams,
        deadline: Instant::now() + total,
        code: EXIT_OK,
        rows: None,
    };
    steps(&mut check);
    let code = check.code;
    (code, String::from_utf8(out).unwrap())
}

#[test]
fn each_step_is_one_line_and_one_failure_fails_all() {
    let (code, out) = checked(TOTAL, |check| {
        check.run_step("cache", DISK_LIMIT, &nothing(), |()| skipped("off"));
        check.run_step("identity", DISK_LIMIT, &nothing(), |()| ok("arn"));
    });
    assert_eq!(
        (code, out.as_str()),
        (EXIT_OK, "skip  cache     off\nok    identity  arn\n")
    );
    let (code, out) = checked(TOTAL, |check| {
        check.run_step("token", DISK_LIMIT, &nothing(), |()| {
            Err("no\r\nok    forged".into())
        });
        check.run_step("dns", DISK_LIMIT, &nothing(), |()| ok("fine"));
    });
    let expected = "FAIL  token     no  ok    forged\nok    dns       fine\n";
    assert_eq!((code, out.as_str()), (EXIT_FAILED, expected));
}

#[test]
fn a_step_that_hangs_is_left_behind() {
    let (release, hold) = channel::<()>();
    let begun = Instant::now();
    let (code, out) = checked(TOTAL, |check| {
        check.run_step("cache", SHORT, &nothing(), move |()| {
            // Ends with the test.
            let _ = hold.recv();
            ok(String::new())
        });
        check.run_step("dns", DISK_LIMIT, &nothing(), |()| ok("fine"));
    });
    assert!(begun.elapsed() < DISK_LIMIT);
    assert_eq!(code, EXIT_FAILED);
    assert_eq!(
        out,
        "FAIL  cache     no outcome within 1 s\nok    dns       fine\n"
    );
    drop(release);
}

#[test]
fn no_step_is_begun_when_the_time_is_over() {
    let (code, out) = checked(Duration::ZERO, |check| {
        check.run_step("dns", DISK_LIMIT, &nothing(), |()| panic!("begun"));
    });
    assert_eq!(code, EXIT_FAILED);
    assert!(out.starts_with("FAIL  dns       not tried: "), "{out}");
}

#[test]
fn a_step_that_panics_has_no_outcome() {
    let (code, out) = checked(TOTAL, |check| {
        check.run_step("dns", DISK_LIMIT, &nothing(), |()| {
            panic!("this panic belongs to a test")
        });
    });
    assert_eq!(code, EXIT_FAILED);
    assert!(
        out.starts_with("FAIL  dns       it ended without an outcome"),
        "{out}"
    );
}

#[test]
fn the_limits_fit_into_a_minute() {
    assert!(TOTAL < Duration::from_secs(60));
    for limit in [
        DISK_LIMIT * 3,
        IDENTITY_LIMIT,
        TOKEN_LIMIT,
        DNS_LIMIT,
        ANSWER_LIMIT,
    ] {
        assert!(limit < TOTAL);
    }
}

#[test]
fn settings_at_fault_are_the_table() {
    let outcome = try_run(&["check", "--nope"], &[("WORKERS", "0")]);
    assert_eq!((outcome.code, outcome.err.as_str()), (EXIT_SETTINGS, ""));
    let lines: Vec<&str> = outcome.out.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("FAIL  settings  "))
    );
}

#[test]
fn settings_are_told_by_name_alone() {
    let resolve = |arguments: &[&str]| {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        config::resolve(&Arguments::parse(arguments), &[]).effective
    };
    assert_eq!(
        list_given(&resolve(&[])),
        "none given, all are the defaults"
    );
    let two = ["--aws-session-token=hunter2", "--workers=3"];
    assert_eq!(
        list_given(&resolve(&two)),
        "2 given: AWS_SESSION_TOKEN, WORKERS"
    );
}
