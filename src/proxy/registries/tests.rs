//! Every way to name a registry, and what names none.

use super::*;
use crate::message::{Headers, Peer};

const EU: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const US: &str = "210987654321.dkr.ecr.us-east-1.amazonaws.com";
const MANIFEST: &str = "team/app/manifests/1.0";

fn list(texts: &[&str], chained: bool) -> Registries {
    let registries = texts.iter().map(|text| text.parse().unwrap());
    Registries::new(registries.collect(), Vec::new(), chained)
}

/// With the value of `NAMESPACES` too.
fn list_with(texts: &[&str], namespaces: &str) -> Registries {
    let environment = [("NAMESPACES".into(), namespaces.into())];
    let arguments = crate::config::Arguments::parse([]);
    let settings = crate::config::resolve(&arguments, &environment).settings;
    Registries {
        origins: settings.unwrap().namespaces,
        ..list(texts, false)
    }
}

fn request(method: &str, target: &str) -> Request {
    Request {
        method: method.into(),
        target: target.into(),
        headers: Headers::new(),
        peer: Peer::on_unix_socket(),
        id: "1".into(),
    }
}

fn read(registries: &Registries, target: &str) -> Result<ResolvedRequest, u16> {
    let read = registries.resolve(&request("GET", target), &|| None);
    read.map_err(|error| error.status)
}

/// The name of the registry that is meant; empty for the default one.
fn meant(registries: &Registries, target: &str) -> Result<(String, String), u16> {
    let meant = read(registries, target)?;
    let name = match meant.choice {
        Choice::Default => String::new(),
        Choice::Known(registry) => registry.to_string(),
        Choice::IfCalled(name) => format!("if {name}"),
    };
    Ok((name, meant.target))
}

#[test]
fn a_registry_is_named_by_parameter_or_by_path() {
    let two = list(&[EU, "http://Other.example:5000"], false);
    let plain = format!("/v2/{MANIFEST}");
    let other = "other.example:5000";
    for (target, registry) in [
        (plain.clone(), ""),
        (format!("{plain}?ns={EU}"), ""),
        (format!("{plain}?ns={EU}:443"), ""),
        (format!("{plain}?ns=other.example%3A5000"), other),
        (format!("{plain}?ns=OTHER.example:5000"), other),
        (format!("{plain}?ns="), ""),
        (format!("/v2/{EU}/{MANIFEST}"), ""),
        (format!("/v2/other.example:5000/{MANIFEST}"), other),
        (format!("/v2/Other.Example%3a5000/{MANIFEST}"), other),
        (format!("/v2/{other}/{MANIFEST}?ns={other}"), other),
        (format!("{plain}?ns={other}&ns={other}"), other),
    ] {
        let found = meant(&two, &target);
        assert_eq!(found, Ok((registry.to_owned(), plain.clone())), "{target}");
    }
}

#[test]
fn other_parameters_stay_byte_for_byte() {
    let one = list(&[EU], false);
    for (query, expected) in [
        ("?artifactType=a%2Fb&ns=EU&n=1", "?artifactType=a%2Fb&n=1"),
        ("?nsx=1&last=ns", "?nsx=1&last=ns"),
        ("?last=a+b/%2B=&ns=EU", "?last=a+b/%2B="),
        ("?ns=EU", ""),
        ("?ns", ""),
        ("?", "?"),
    ] {
        let target = format!("/v2/a/tags/list{}", query.replace("EU", EU));
        let expected = format!("/v2/a/tags/list{expected}");
        assert_eq!(meant(&one, &target), Ok((String::new(), expected)));
    }
}

#[test]
fn the_list_is_closed() {
    let two = list(&[EU, "http://other.example:5000"], false);
    for target in [
        format!("/v2/{MANIFEST}?ns={US}"),
        format!("/v2/{MANIFEST}?ns=%zz"),
        format!("/v2/{MANIFEST}?ns=user@{EU}"),
        format!("/v2/{MANIFEST}?ns={EU}/x"),
        format!("/v2/{MANIFEST}?ns={EU}&ns=other.example:5000"),
        format!("/v2/{EU}/{MANIFEST}?ns=other.example:5000"),
        format!("/v2/other.example:5001/{MANIFEST}"),
        format!("/v2/localhost:5000/{MANIFEST}"),
        format!("/v2/[::1]:5000/{MANIFEST}"),
        format!("/v2/{US}/{MANIFEST}"),
        format!("/v2/public.ecr.aws/{MANIFEST}"),
    ] {
        let error = two.resolve(&request("GET", &target), &|| None).unwrap_err();
        assert_eq!((error.status, error.code), (404, ErrorCode::NameUnknown));
    }
    // A ping says that this is a registry, whichever is meant.
    assert_eq!(read(&two, "/v2/?ns=docker.io").unwrap().route, Route::Base);
    // What is no host at all is a malformed name.
    for target in ["/v2/a:b/c/manifests/1", "/v2/u@h.example:5/c/manifests/1"] {
        assert_eq!(read(&two, target).unwrap_err(), 400, "{target}");
    }
}

/// containerd's `override_path` puts the prefix into the path and still sends the image's origin.
#[test]
fn bug_a_mirror_that_named_the_images_origin_got_404() {
    let two = list(&[EU, "http://other.example:5000"], false);
    let path = "/v2/docker-hub/library/alpine/manifests/3";
    for origin in [
        "docker.io",
        "quay.io",
        "registry.k8s.io",
        "public.ecr.aws",
        "other.example",
        "localhost:5000",
        "10.0.0.1",
        "%5B::1%5D:5000",
    ] {
        for method in ["GET", "HEAD"] {
            let target = format!("{path}?ns={origin}");
            let meant = two.resolve(&request(method, &target), &|| None).unwrap();
            assert_eq!(meant.choice, Choice::Default, "{target}");
            assert_eq!((meant.target.as_str(), meant.namespace), (path, None));
        }
    }
    // One that is ours decides beside one that is not.
    let both = format!("{path}?ns=docker.io&ns=other.example:5000");
    let expected = ("other.example:5000".to_owned(), path.to_owned());
    assert_eq!(meant(&two, &both), Ok(expected));
}

#[test]
fn an_origin_has_its_place() {
    let place = "docker.io=docker-hub,quay.io=other.example:5000/q/uay,ghcr.io=other.example:5000";
    let two = list_with(&[EU, "http://other.example:5000"], place);
    let (default, other) = ("", "other.example:5000");
    for (target, registry, expected) in [
        (
            "/v2/library/alpine/manifests/3?ns=docker.io",
            default,
            "/v2/docker-hub/library/alpine/manifests/3",
        ),
        (
            "/v2/library/alpine/tags/list?n=5&ns=Docker.IO&last=2",
            default,
            "/v2/docker-hub/library/alpine/tags/list?n=5&last=2",
        ),
        // With override_path as well.
        (
            "/v2/docker-hub/library/alpine/manifests/3?ns=docker.io",
            default,
            "/v2/docker-hub/library/alpine/manifests/3",
        ),
        (
            "/v2/docker.io/library/alpine/manifests/3",
            default,
            "/v2/docker-hub/library/alpine/manifests/3",
        ),
        (
            "/v2/docker.io/library/alpine/manifests/3?ns=docker.io",
            default,
            "/v2/docker-hub/library/alpine/manifests/3",
        ),
        (
            "/v2/a/b/manifests/3?ns=quay.io",
            other,
            "/v2/q/uay/a/b/manifests/3",
        ),
        (
            "/v2/a/b/manifests/3?ns=ghcr.io",
            other,
            "/v2/a/b/manifests/3",
        ),
        (
            "/v2/a/b/manifests/3?ns=gcr.io",
            default,
            "/v2/a/b/manifests/3",
        ),
        ("/v2/a/b/manifests/3", default, "/v2/a/b/manifests/3"),
        ("/v2/_catalog?ns=docker.io", default, "/v2/_catalog"),
        ("/v2/?ns=docker.io", default, "/v2/"),
    ] {
        let expected = (registry.to_owned(), expected.to_owned());
        assert_eq!(meant(&two, target), Ok(expected), "{target}");
    }
    let read = read(&two, "/v2/library/alpine/tags/list?ns=docker.io").unwrap();
    assert_eq!(read.namespace.as_deref(), Some("docker.io"));
    assert_eq!(read.parameter.as_deref(), Some("ns=docker.io"));
    assert_eq!(
        (read.added.as_str(), read.prefix.as_str()),
        ("docker-hub/", "")
    );
    // Two places at once.
    for target in [
        "/v2/docker.io/library/alpine/manifests/3?ns=quay.io",
        "/v2/other.example:5000/library/alpine/manifests/3?ns=docker.io",
    ] {
        assert_eq!(meant(&two, target), Err(404), "{target}");
    }
}

#[test]
fn an_origin_may_be_another_registry_of_ecr_and_without_a_list_the_identitys_own() {
    let one = list_with(&[EU], &format!("{US}=us"));
    let expected = Ok((String::new(), "/v2/us/a/manifests/1".to_owned()));
    assert_eq!(meant(&one, &format!("/v2/a/manifests/1?ns={US}")), expected);
    let none = list_with(&[], &format!("docker.io=hub,quay.io={EU}/quay"));
    let target = "/v2/a/manifests/1?ns=quay.io";
    let read = none.resolve(&request("GET", target), &|| None).unwrap();
    assert_eq!(read.choice, Choice::IfCalled(EU.into()));
    assert_eq!(read.target, "/v2/quay/a/manifests/1");
    let own = || Some(US.parse().unwrap());
    // The identity's registry is another one, so there is no place for quay.io.
    let by_path = "/v2/quay.io/a/manifests/1";
    for target in [target, by_path] {
        let error = none.resolve(&request("GET", target), &own).unwrap_err();
        assert_eq!(error.code, ErrorCode::NameUnknown);
    }
}

#[test]
fn a_repository_may_look_like_a_host() {
    let two = list(&[EU, "http://registry", "http://localhost:80"], false);
    for path in [
        "/v2/my.app/x/manifests/1",
        "/v2/docker.io/library/nginx/manifests/1",
        // A name without a dot is no host, whatever the list says.
        "/v2/registry/x/manifests/1",
    ] {
        assert_eq!(meant(&two, path), Ok((String::new(), path.to_owned())));
    }
    let local = meant(&two, "/v2/localhost/x/manifests/1").unwrap();
    assert_eq!(local.0, "localhost:80");
}

#[test]
fn every_endpoint_can_carry_the_host() {
    let two = list(&[EU, "https://other.example"], false);
    for (path, expected) in [
        ("", "/v2/"),
        ("/", "/v2/"),
        ("/_catalog?n=5", "/v2/_catalog?n=5"),
        ("/a/b/tags/list", "/v2/a/b/tags/list"),
        (
            "/a/blobs/uploads/x?_state=%2B",
            "/v2/a/blobs/uploads/x?_state=%2B",
        ),
    ] {
        let read = read(&two, &format!("/v2/other.example{path}")).unwrap();
        assert_eq!(read.choice, Choice::Known("other.example".parse().unwrap()));
        assert_eq!(
            (read.target.as_str(), read.prefix.as_str()),
            (expected, "other.example/")
        );
    }
}

#[test]
fn a_push_names_its_registry_by_the_path_alone() {
    let two = list(&[EU, "other.example"], false);
    for (method, target) in [
        ("PUT", format!("/v2/{MANIFEST}?ns=other.example")),
        ("PUT", format!("/v2/{MANIFEST}?ns=unknown.example")),
        ("DELETE", format!("/v2/{MANIFEST}?ns=other.example")),
        ("POST", "/v2/a/blobs/uploads/?ns=other.example".to_owned()),
        ("GET", "/v2/a/blobs/uploads/1?ns=other.example".to_owned()),
    ] {
        let meant = two.resolve(&request(method, &target), &|| None).unwrap();
        let path = target.split('?').next().unwrap();
        assert_eq!(
            (meant.choice, meant.target.as_str()),
            (Choice::Default, path)
        );
        assert_eq!(meant.namespace, None);
    }
    let target = format!("/v2/other.example/{MANIFEST}");
    let meant = two.resolve(&request("PUT", &target), &|| None).unwrap();
    assert_eq!(
        meant.choice,
        Choice::Known("other.example".parse().unwrap())
    );
}

#[test]
fn a_mount_is_translated() {
    let two = list(&[EU, "other.example:5000"], false);
    let post = |target: &str| {
        two.resolve(&request("POST", target), &|| None)
            .unwrap()
            .target
    };
    let uploads = "/v2/a/blobs/uploads/";
    let mount = "?mount=sha256:0&from=";
    assert_eq!(
        post(&format!("{uploads}{mount}b/c")),
        format!("{uploads}{mount}b/c")
    );
    let by_path = format!("/v2/{EU}/a/blobs/uploads/{mount}{EU}%2Fb%2Fc");
    assert_eq!(post(&by_path), format!("{uploads}{mount}b/c"));
    let foreign = format!("{uploads}{mount}other.example%3A5000%2Fb&x=1");
    assert_eq!(post(&foreign), format!("{uploads}?x=1"));
    let dotted = format!("{uploads}{mount}my.app/b");
    assert_eq!(post(&dotted), dotted);
}

#[test]
fn without_a_list_there_is_the_identitys_own() {
    let none = list(&[], false);
    let read = |target: &str, own: Option<&str>| {
        let own = own.map(|text| text.parse().unwrap());
        let read = none.resolve(&request("GET", target), &|| own.clone());
        read.map(|meant| meant.choice).map_err(|error| error.status)
    };
    let by_name = format!("/v2/{MANIFEST}?ns={EU}");
    assert_eq!(read(&by_name, Some(EU)), Ok(Choice::Default));
    assert_eq!(read(&by_name, Some(US)), Err(404));
    assert_eq!(read(&by_name, None), Ok(Choice::IfCalled(EU.into())));
    let by_path = format!("/v2/{EU}/{MANIFEST}");
    assert_eq!(read(&by_path, Some(EU)), Ok(Choice::Default));
    assert_eq!(read(&by_path, None), Ok(Choice::IfCalled(EU.into())));
    let foreign = format!("/v2/{MANIFEST}?ns=docker.io");
    assert_eq!(read(&foreign, None), Ok(Choice::Default));
}

#[test]
fn a_registry_with_an_address_of_its_own_goes_by_ecrs_names() {
    let one = list(&["http://127.0.0.1:5000"], false);
    let plain = format!("/v2/{MANIFEST}");
    for target in [format!("{plain}?ns={EU}"), format!("/v2/{EU}/{MANIFEST}")] {
        assert_eq!(meant(&one, &target), Ok((String::new(), plain.clone())));
    }
    let foreign = format!("{plain}?ns=docker.io");
    assert_eq!(meant(&one, &foreign), Ok((String::new(), plain.clone())));
    // Another proxy is asked for it by name, and knows it or not.
    let chained = list(&["http://site:8080"], true);
    let Choice::Known(found) = read(&chained, &format!("{plain}?ns={EU}")).unwrap().choice else {
        panic!("not the other proxy's");
    };
    assert_eq!(
        (found.url().as_str(), found.name()),
        ("http://site:8080", EU)
    );
    assert_eq!(found.namespace(), Some(EU));
    // With more than one in the list, it is closed by name.
    let two = list(&["http://127.0.0.1:5000", "http://127.0.0.1:5001"], false);
    assert_eq!(meant(&two, &format!("{plain}?ns={EU}")), Err(404));
}

#[test]
fn ecr_has_several_names_for_one_registry() {
    let two = list(&["other.example", EU], false);
    let fips = "123456789012.dkr.ecr-fips.eu-west-1.amazonaws.com";
    let dual = "123456789012.dkr-ecr.eu-west-1.on.aws";
    for name in [fips, dual] {
        let found = meant(&two, &format!("/v2/{MANIFEST}?ns={name}")).unwrap();
        assert_eq!(found.0, EU);
    }
}
