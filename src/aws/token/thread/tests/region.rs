//! The region comes from the instance metadata when no setting has it.

use super::*;
use crate::config::InstanceSettings;
use crate::upstream::{Stage, UpstreamError};

/// On an instance whose settings tell no region.
fn on_ec2() -> AwsSettings {
    AwsSettings {
        instance: InstanceSettings {
            enabled: true,
            ..InstanceSettings::default()
        },
        ..keys()
    }
}

#[test]
fn the_region_of_the_instance_is_taken_where_nothing_else_tells_it() {
    for registry in [Some("registry.example"), None] {
        let bench = Bench::new(registry, on_ec2());
        bench.api.reply(json(200, "session"));
        bench.api.reply(json(200, "eu-west-1\n"));
        assert_eq!(bench.step(), "search");
        // Fetched without being asked, as with a region that is set.
        bench.first_token();
        assert_eq!(
            value(&bench.header("registry.example").unwrap()),
            "Basic one"
        );
        let urls: Vec<String> = bench.api.calls().into_iter().map(|call| call.url).collect();
        let expected = [
            "http://169.254.169.254/latest/api/token",
            "http://169.254.169.254/latest/meta-data/placement/region",
            "https://api.ecr.eu-west-1.amazonaws.com/",
            "https://sts.eu-west-1.amazonaws.com/",
        ];
        assert_eq!(urls, expected);
        let status = bench.tokens.status();
        assert!(status.has_token && status.last_error.is_none());
        let default = bench.tokens.default_registry(bench.clock.monotonic());
        assert_eq!(default.unwrap().host(), EU);
    }
}

#[test]
fn a_region_that_is_told_is_not_searched_for() {
    let bench = Bench::new(Some(EU), on_ec2());
    bench.first_token();
    // Only now, by a registry whose name tells none.
    assert!(
        bench
            .header("registry.example")
            .unwrap_err()
            .contains("has not answered yet")
    );
    bench.api.reply(json(200, "session"));
    bench.api.reply(json(200, "us-east-1"));
    assert_eq!(bench.step(), "search");
    assert!(
        bench
            .header("registry.example")
            .unwrap_err()
            .contains("us-east-1 in time")
    );
    bench.api.reply(token("us", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(
        value(&bench.header("registry.example").unwrap()),
        "Basic us"
    );
    let set = AwsSettings {
        region: Some("eu-west-1".into()),
        ..on_ec2()
    };
    let bench = Bench::new(Some("registry.example"), set);
    bench.first_token();
    assert_eq!(
        value(&bench.header("registry.example").unwrap()),
        "Basic one"
    );
}

#[test]
fn a_region_that_is_not_found_is_told_and_searched_for_again_later() {
    let bench = Bench::new(Some("registry.example"), on_ec2());
    bench.api.fail(refused());
    assert_eq!(bench.step(), "search");
    assert_eq!(bench.step(), "sleep");
    let fault = bench.header("registry.example").unwrap_err();
    for part in [
        "has no region: set AWS_REGION",
        "does not answer",
        "next try in",
    ] {
        assert!(fault.contains(part), "{fault}");
    }
    let told = bench.tokens.status().last_error.unwrap();
    assert!(told.contains("set AWS_REGION; the EC2 instance"), "{told}");
    bench.clock.advance(SECOND * 59);
    assert_eq!(bench.step(), "sleep");
    bench.clock.advance(SECOND * 7);
    bench.api.reply(json(200, "session"));
    bench.api.reply(json(200, "not a region"));
    assert_eq!(bench.step(), "search");
    assert!(
        bench
            .header("registry.example")
            .unwrap_err()
            .contains("has no region")
    );
    assert_eq!(bench.api.calls().len(), 3);
}

#[test]
fn callers_wait_for_the_region_and_then_for_the_token() {
    let bench = Bench::new(Some("registry.example"), on_ec2());
    let registry: Registry = "registry.example".parse().unwrap();
    let deadline = bench.clock.monotonic() + SECOND * 30;
    bench.api.reply(json(200, "session"));
    bench.api.reply(json(200, "eu-west-1"));
    bench.api.reply(token("one", START + 12 * 3600));
    std::thread::scope(|scope| {
        let ask = || bench.tokens.header(&registry, deadline);
        let callers: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        scope.spawn(|| bench.tokens.run());
        let grants: Vec<_> = callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect();
        // Before anything can fail: the scope waits for the thread.
        bench.tokens.stop();
        for grant in grants {
            assert_eq!(value(&grant.unwrap()), "Basic one");
        }
    });
}

#[test]
fn stopping_frees_callers_that_wait_for_the_region() {
    let bench = Bench::new(Some("registry.example"), on_ec2());
    let registry: Registry = "registry.example".parse().unwrap();
    let deadline = bench.clock.monotonic() + SECOND * 30;
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| bench.tokens.header(&registry, deadline));
        bench.tokens.stop();
        assert!(
            caller
                .join()
                .unwrap()
                .unwrap_err()
                .0
                .contains("set AWS_REGION")
        );
    });
    assert!(bench.api.calls().is_empty());
}

#[test]
fn without_credentials_the_fault_says_what_was_tried() {
    let aws = AwsSettings {
        region: Some("eu-west-1".into()),
        access_key_id: None,
        secret_access_key: None,
        ..on_ec2()
    };
    let bench = Bench::new(Some(EU), aws);
    bench.api.fail(UpstreamError {
        stage: Stage::Timeout,
        ..refused()
    });
    assert_eq!(bench.step(), "fetch");
    let fault = bench.header(EU).unwrap_err();
    for part in ["set AWS_ACCESS_KEY_ID", "does not answer", "hop limit 2"] {
        assert!(fault.contains(part), "{fault}");
    }
    bench.clock.advance(SECOND * 59);
    assert_eq!(bench.step(), "sleep");
    assert_eq!(bench.api.calls().len(), 1);
}

#[test]
fn a_role_is_assumed_in_the_region_that_the_instance_tells() {
    let folder = fake::Folder::new();
    let aws = AwsSettings {
        access_key_id: None,
        secret_access_key: None,
        web_identity_token_file: Some(folder.write("token", "tok.en")),
        role_arn: Some("arn:aws:iam::123456789012:role/puller".into()),
        ..on_ec2()
    };
    let bench = Bench::new(None, aws);
    bench.api.reply(json(200, "session"));
    bench.api.reply(json(200, "eu-west-1"));
    assert_eq!(bench.step(), "search");
    let session = "<AccessKeyId>A</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
                   <SessionToken>t</SessionToken><Expiration>2033-11-14T23:13:20Z</Expiration>";
    bench.api.reply(json(200, session));
    bench.api.reply(token("one", START + 12 * 3600));
    assert_eq!(bench.step(), "fetch");
    assert_eq!(value(&bench.header(EU).unwrap()), "Basic one");
    let sts = &bench.api.calls()[2].url;
    assert_eq!(sts, "https://sts.eu-west-1.amazonaws.com/");
}
