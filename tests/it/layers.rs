//! Holds the crate to the layers of its architecture: imports point one way, and outside crates
//! are named in one place each.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::{module_of, read_source, sources};

/// The layers from the top to the bottom.
const LAYERS: [&[&str]; 12] = [
    &["main"],
    &["cli"],
    &["app"],
    &["door", "pool"],
    &["proxy", "pages", "status"],
    &["aws", "cache"],
    &["upstream"],
    &[
        "config",
        "image_name",
        "media_type",
        "message",
        "hash",
        "via",
    ],
    &["oci"],
    &["metrics", "log", "clock"],
    &[
        "address",
        "budget",
        "calendar",
        "history",
        "permits",
        "platforms",
        "prefetched",
        "random",
        "range",
        "secret",
        "small_file",
        "transfers",
        "uri",
    ],
    &["label", "locked"],
];
/// These know only the layers from `config` down.
const LOW_SIGHTED: [&str; 2] = ["door", "pool"];
/// The layer with `config` in it.
const WORDS_LAYER: usize = 7;
/// Arrows within a layer, each with its reason. Together they must form no circle.
const WITHIN: [(&str, &str); 5] = [
    // Turns at large bodies are permits.
    ("budget", "permits"),
    // A setting names an image; it is checked where it is read.
    ("config", "image_name"),
    // A dropped log line is counted.
    ("log", "metrics"),
    // It is read from the fields of a message.
    ("media_type", "message"),
    // It is a field of a message.
    ("via", "message"),
];
/// An outside path, and the files (or folders, with a slash) that may name it.
const FENCES: [(&str, &[&str]); 12] = [
    ("ureq", &["upstream/"]),
    ("tiny_http", &["pool.rs"]),
    ("aws_sigv4", &["aws/sigv4.rs"]),
    ("aws_credential_types", &["aws/sigv4.rs"]),
    (
        "base64",
        &[
            "aws/redact.rs",
            "proxy/login/",
            "secret.rs",
            "status/page.rs",
        ],
    ),
    ("bcrypt", &["proxy/login/htpasswd.rs"]),
    ("std::env", &["config.rs", "config/"]),
    ("rustls", &["upstream/", "door/tls.rs", "door/tls/"]),
    ("percent_encoding", &["uri.rs"]),
    ("simple_dns", &["upstream/dns/"]),
    // It reads the environment by itself, after `config/listen.rs` has.
    ("listenfd", &["app/listen.rs"]),
    ("sd_notify", &["app/notify.rs"]),
];

/// What is wrong with a source file; `file` is its path below `src`.
fn faults(file: &str, source: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let module = module_of(file);
    let from = match module.first().map(String::as_str) {
        None if file == "lib.rs" => None,
        None => Some("main"),
        Some(name) => Some(name),
    };
    if let Some(from) = from
        && layer(from).is_none()
    {
        faults.push(format!("{file}: no layer is known for `{from}`"));
        return faults;
    }
    for named in read_source(source, &module).paths {
        let (whole, path) = (named.text(), &named.path);
        for (fenced, allowed) in FENCES {
            let names = whole == fenced || whole.starts_with(&format!("{fenced}::"));
            let may = allowed
                .iter()
                .any(|a| file == *a || (a.ends_with('/') && file.starts_with(a)));
            if names && !may {
                faults.push(format!(
                    "{file}: `{whole}`; only {allowed:?} may name {fenced}"
                ));
            }
        }
        let (Some("crate"), Some(to), Some(from)) =
            (path.first().map(String::as_str), path.get(1), from)
        else {
            continue;
        };
        if let Some(reason) = forbidden(from, to) {
            faults.push(format!("{file}: `{whole}`: {reason}"));
        }
    }
    faults.dedup();
    faults
}

/// Why `from` may not name `to`, if it may not.
fn forbidden(from: &str, to: &str) -> Option<String> {
    let Some(below) = layer(to) else {
        return Some(format!("`{to}` is no module of the layer map"));
    };
    let above = layer(from)?;
    if from == to || WITHIN.contains(&(from, to)) {
        return None;
    }
    if below <= above {
        return Some(format!(
            "{from} (layer {above}) must not know {to} (layer {below})"
        ));
    }
    let blind = LOW_SIGHTED.contains(&from) && below < WORDS_LAYER;
    blind.then(|| format!("{from} must know nothing above `config`, `oci` and `message`"))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Which file names which, tests left out. Paths through a re-export lead to the file that has it.
fn arrows(sources: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let files: BTreeMap<Vec<String>, &str> = sources
        .iter()
        .filter(|(file, _)| file != "main.rs")
        .map(|(file, _)| (module_of(file), file.as_str()))
        .collect();
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut test_modules = Vec::new();
    for (file, text) in sources {
        let module = module_of(file);
        let source = read_source(text, &module);
        let named = source.paths.iter().filter(|named| !named.in_tests);
        let targets = named.filter_map(|named| target(&named.path, &module, &files));
        let others = targets.filter(|target| target != file);
        arrows.insert(file.clone(), others.map(str::to_owned).collect());
        test_modules.extend(source.test_modules);
    }
    arrows.retain(|file, _| !test_modules.iter().any(|t| module_of(file).starts_with(t)));
    arrows
}

/// The file that a path of `module` leads to: the one of its longest beginning that is a module.
fn target<'a>(
    path: &[String],
    module: &[String],
    files: &BTreeMap<Vec<String>, &'a str>,
) -> Option<&'a str> {
    let absolute = match path.split_first() {
        Some((first, rest)) if first == "crate" => rest.to_vec(),
        // `child::thing`, seen from the module that has the child.
        Some((first, rest)) if !rest.is_empty() => {
            let child = [module, std::slice::from_ref(first)].concat();
            files.get(&child)?;
            [&child, rest].concat()
        }
        _ => return None,
    };
    let beginnings = (1..=absolute.len()).rev().map(|end| &absolute[..end]);
    beginnings
        .filter_map(|module| files.get(module).copied())
        .next()
}

/// Groups of files each of which leads back to itself through the others.
fn circles(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = arrows
        .keys()
        .map(|from| {
            let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(file) = next.pop() {
                let targets = arrows.get(file).into_iter().flatten();
                next.extend(targets.filter(|target| reached.insert(*target)));
            }
            (from, reached)
        })
        .collect();
    let mut circles: Vec<BTreeSet<String>> = Vec::new();
    for (file, targets) in &reached {
        if !targets.contains(file) || circles.iter().any(|circle| circle.contains(*file)) {
            continue;
        }
        let back = targets
            .iter()
            .filter(|target| reached.get(**target).is_some_and(|r| r.contains(file)));
        circles.push(back.map(|file| (*file).clone()).collect());
    }
    circles
}

/// True when `from` is in the folder of the module in `to`, at any depth.
fn is_below(from: &str, to: &str) -> bool {
    let (from, to) = (module_of(from), module_of(to));
    from.len() > to.len() && from.starts_with(&to)
}

/// What is wrong with the order of the files: a child may name its parent's words, so those arrows
/// are left out; all others must form no circle.
fn circle_faults(sources: &[(String, String)]) -> Vec<String> {
    let mut arrows = arrows(sources);
    for (from, targets) in &mut arrows {
        targets.retain(|to| !is_below(from, to));
    }
    let describe = |circle: &BTreeSet<String>| {
        let steps = circle.iter().flat_map(|from| {
            let inside = arrows[from].iter().filter(|to| circle.contains(*to));
            inside.map(move |to| format!("\n    {from} → {to}"))
        });
        format!("a circle:{}", steps.collect::<String>())
    };
    circles(&arrows).iter().map(describe).collect()
}

#[test]
fn files_form_no_circle() {
    let faults = circle_faults(&sources("src"));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Each import of a child file from its parent's file: `aws/x/y.rs → aws/x.rs`. What both need
/// belongs in a file below them; the parent only puts its children together.
fn arrows_up(sources: &[(String, String)]) -> Vec<String> {
    let arrows = arrows(sources);
    let arrows = arrows
        .iter()
        .flat_map(|(from, targets)| targets.iter().map(move |to| (from, to)));
    let up = arrows.filter(|(from, to)| is_below(from, to));
    up.map(|(from, to)| format!("{from} → {to}")).collect()
}

#[test]
fn children_name_nothing_of_their_parents() {
    let arrows = arrows_up(&sources("src"));
    assert!(arrows.is_empty(), "{}", arrows.join("\n"));
    let file = |file: &str, text: &str| (file.to_owned(), text.to_owned());
    for (count, child) in [
        (1, "use super::A;"),
        (1, "fn f() { crate::a::g() }"),
        (0, "pub(super) struct B; use super::c::C;"),
        (0, "pub(in crate::a) fn f() {}"),
        (0, "#[cfg(test)] use super::A;"),
    ] {
        let files = [
            file("a.rs", "mod b; mod c;"),
            file("a/b.rs", child),
            file("a/c.rs", "pub(super) struct C;"),
        ];
        assert_eq!(arrows_up(&files).len(), count, "{child}");
    }
}

#[test]
fn a_circle_between_files_is_seen() {
    let faults = |files: &[(&str, &str)]| {
        let file = |(file, text): &(&str, &str)| ((*file).to_owned(), (*text).to_owned());
        circle_faults(&files.iter().map(file).collect::<Vec<_>>()).len()
    };
    let parent = ("a/mod.rs", "mod b; mod c; mod d; use b::B;");
    let c = ("a/c.rs", "use super::d::D; use super::A;");
    for (count, b, d) in [
        (0, "use super::c::C;", "use crate::log;"),
        (1, "use super::c::C;", "use super::b::B;"),
        (1, "use super::c::C;", "fn f() { g!(x, crate::a::b::h()) }"),
        (0, "use super::c::C;", "// use super::b::B;"),
        (
            0,
            "use super::c::C;",
            "#[cfg(test)] mod tests { use super::super::b::B; }",
        ),
        (0, "use super::c::C;", "#[cfg(test)] use super::b::B;"),
        (
            1,
            "use super::c::C;",
            "#[cfg(test)] use x::Y; use super::b::B;",
        ),
    ] {
        let files = [parent, ("a/b.rs", b), c, ("a/d.rs", d)];
        assert_eq!(faults(&files), count, "{b} {d}");
    }
    let tests = ("a/mod.rs", "pub mod b; #[cfg(test)] mod fake;");
    let fake = ("a/fake.rs", "use super::b;");
    assert_eq!(faults(&[tests, fake, ("a/b.rs", "use super::fake::F;")]), 0);
}

#[test]
fn imports_point_one_way() {
    let sources = sources("src");
    assert!(sources.iter().any(|(file, _)| file == "lib.rs"));
    let faults: Vec<String> = sources
        .iter()
        .flat_map(|(file, text)| faults(file, text))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn allowed_arrows_pass() {
    for (file, source) in [
        ("main.rs", "use aws_ecr_proxy::{cli, log::Level};"),
        (
            "app.rs",
            "use crate::{door, pool, proxy, pages, aws::token, cache, upstream};",
        ),
        (
            "door/mod.rs",
            "mod head; use crate::message::Request; use head::Head;",
        ),
        (
            "door/head.rs",
            "use super::lanes::Lanes; fn f() { crate::log::info(); }",
        ),
        (
            "proxy/pull.rs",
            "use crate::aws::token; use super::super::upstream::client;",
        ),
        (
            "upstream/client.rs",
            "use ureq::Agent; use super::Stage; use crate::oci;",
        ),
        ("pool.rs", "use tiny_http::{Server, Request};"),
        (
            "aws/sigv4.rs",
            "use aws_sigv4::sign; use aws_credential_types::Credentials;",
        ),
        ("config.rs", "use std::{env, io}; use crate::oci::Registry;"),
        (
            "log.rs",
            "use crate::metrics; mod tests { use super::*; use super::super::metrics; }",
        ),
        (
            "oci.rs",
            "// use crate::door;\n/* crate::app /* nested */ ureq:: */ const A: &str = \"crate::app\";",
        ),
        (
            "oci.rs",
            "const A: &str = r#\"crate::\"app\"#; const B: char = '\"'; fn f<'a>() {} const C: u8 = b'\\'';",
        ),
        (
            "oci.rs",
            "pub(crate) fn f() -> Result<(), environment::Error> { my::ureq::x() }",
        ),
        ("lib.rs", "pub mod door; pub mod pool; pub use door::Door;"),
    ] {
        assert_eq!(
            faults(file, source),
            Vec::<String>::new(),
            "{file}: {source}"
        );
    }
}

#[test]
fn forbidden_arrows_fail() {
    for (file, source) in [
        ("log.rs", "use crate::oci::Digest;"),
        (
            "oci.rs",
            "fn f() { let x = crate::upstream::client::new(); }",
        ),
        ("oci.rs", "const A: &str = \"\\\\\"; use crate::app;"),
        (
            "oci.rs",
            "const A: char = '\\''; use crate::app; const B: char = '\\'';",
        ),
        ("message.rs", "use super::door::Door;"),
        ("message.rs", "mod tests { use super::super::door::Door; }"),
        ("message.rs", "mod a { mod b { } } use super::door::Door;"),
        ("message.rs", "impl From<crate::config::Settings> for X {}"),
        (
            "upstream/client.rs",
            "use crate::{oci, secret::Secret, aws::token::Token};",
        ),
        ("upstream/client.rs", "use super::super::aws;"),
        ("door/head.rs", "use crate::upstream::Stage;"),
        ("door/mod.rs", "use crate::{message::Request, pool as p};"),
        ("pool.rs", "use crate::proxy;"),
        ("proxy/pull.rs", "use crate::pages;"),
        ("pages/mod.rs", "use crate::proxy;"),
        ("aws/token.rs", "use crate::cache;"),
        ("cache/fill.rs", "use crate::aws;"),
        ("clock.rs", "use crate::log;"),
        ("app.rs", "use crate::cli;"),
        ("cli.rs", "use crate::Door;"),
        ("extra.rs", "fn f() {}"),
        ("extra/mod.rs", "fn f() {}"),
        ("aws/token.rs", "use ureq::Agent;"),
        ("lib.rs", "fn f() { ::ureq::get(); }"),
        ("app.rs", "use tiny_http::Server;"),
        ("aws/ecr.rs", "use {std::io, aws_sigv4::sign};"),
        ("aws/token.rs", "use aws_credential_types::Credentials;"),
        ("proxy/login/mod.rs", "fn f() { bcrypt::bcrypt(); }"),
        ("main.rs", "fn main() { std::env::args(); }"),
        ("app.rs", "use std::{env, io};"),
        ("app.rs", "use std::{io::{self, Read}, env::var as v};"),
        ("proxy/pull.rs", "use rustls::Config;"),
        ("door/socket.rs", "use rustls::ServerConnection;"),
    ] {
        assert_ne!(
            faults(file, source),
            Vec::<String>::new(),
            "{file}: {source}"
        );
    }
}

#[test]
fn the_map_has_each_module_once_and_no_circle() {
    let modules: Vec<&str> = LAYERS.concat();
    for module in &modules {
        assert_eq!(
            modules.iter().filter(|other| *other == module).count(),
            1,
            "{module}"
        );
    }
    for (from, to) in WITHIN {
        assert_eq!(
            layer(from),
            layer(to),
            "{from} → {to} is no arrow within a layer"
        );
        // With a source that is never a target, no chain comes back.
        assert!(
            !WITHIN.iter().any(|(_, target)| *target == from),
            "{from} → {to}"
        );
    }
}
