//! Holds the crate to the layers of its architecture: imports point one way, and outside crates
//! are named in one place each. Reads the sources; knows no more of Rust than paths.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the top to the bottom.
const LAYERS: [&[&str]; 10] = [
    &["main"],
    &["cli"],
    &["app"],
    &["door", "pool"],
    &["proxy", "pages"],
    &["aws", "cache"],
    &["upstream"],
    &["config", "oci", "message", "hash"],
    &["metrics", "log", "clock"],
    &[
        "address", "calendar", "permits", "random", "range", "secret", "uri",
    ],
];
/// These know only the layers from `config` down.
const LOW_SIGHTED: [&str; 2] = ["door", "pool"];
/// The layer with `config` in it.
const WORDS_LAYER: usize = 7;
/// Arrows within a layer, each with its reason. Together they must form no circle.
const WITHIN: [(&str, &str); 3] = [
    // A setting names a registry; it is checked where it is read.
    ("config", "oci"),
    // Content is hashed by the algorithm of its digest.
    ("hash", "oci"),
    // A dropped log line is counted.
    ("log", "metrics"),
];
/// An outside path, and the files (or folders, with a slash) that may name it.
const FENCES: [(&str, &[&str]); 11] = [
    ("ureq", &["upstream/"]),
    ("tiny_http", &["pool.rs"]),
    ("aws_sigv4", &["aws/sigv4.rs"]),
    ("aws_credential_types", &["aws/sigv4.rs"]),
    ("base64", &["proxy/login/", "upstream/outbound.rs"]),
    ("bcrypt", &["proxy/login/htpasswd.rs"]),
    ("std::env", &["config.rs", "config/"]),
    ("rustls", &["upstream/", "door/tls.rs", "door/tls/"]),
    ("percent_encoding", &["uri.rs"]),
    ("simple_dns", &["upstream/dns/"]),
    // It reads the environment by itself, after `config/listen.rs` has.
    ("listenfd", &["app/listen.rs"]),
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
    for path in paths(&tokens(source), &module) {
        let whole = path.join("::");
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

/// `upstream/client.rs` → `[upstream, client]`; the roots → `[]`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || ["main", "lib"].contains(&path) {
        module.pop();
    }
    module
}

/// Names, `::`, and single other characters; comments, strings and characters left out.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let chars: Vec<char> = source.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let skipped = comment(rest).or_else(|| literal(rest));
        if let Some(length) = skipped {
            at += length;
        } else if is_name(rest[0]) {
            let length = rest.iter().position(|c| !is_name(*c)).unwrap_or(rest.len());
            tokens.push(rest[..length].iter().collect());
            at += length;
        } else if rest.starts_with(&[':', ':']) {
            tokens.push("::".into());
            at += 2;
        } else {
            if !rest[0].is_whitespace() {
                tokens.push(rest[0].to_string());
            }
            at += 1;
        }
    }
    tokens
}

fn is_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Length of the comment that begins here, if one does.
fn comment(rest: &[char]) -> Option<usize> {
    if rest.starts_with(&['/', '/']) {
        return Some(rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with(&['/', '*']) {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(&['/', '*']) {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(&['*', '/']) {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += 1;
        }
        if depth == 0 {
            break;
        }
    }
    Some(at)
}

/// Length of the string or character literal that begins here, if one does.
fn literal(rest: &[char]) -> Option<usize> {
    let prefix = rest
        .iter()
        .take_while(|c| matches!(c, 'b' | 'c' | 'r'))
        .take(2)
        .count();
    let raw = rest[..prefix].contains(&'r');
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    let start = prefix + hashes;
    if rest.get(start) == Some(&'"') && (raw || hashes == 0) {
        let mut at = start + 1;
        while at < rest.len() {
            let ends = rest[at] == '"'
                && rest[at + 1..]
                    .iter()
                    .take(hashes)
                    .filter(|c| **c == '#')
                    .count()
                    == hashes;
            if ends {
                return Some(at + 1 + hashes);
            }
            at += if rest[at] == '\\' && !raw { 2 } else { 1 };
        }
        return Some(rest.len());
    }
    // A lifetime has no second quote.
    let quote = prefix.min(1);
    if hashes > 0 || raw || rest.get(quote) != Some(&'\'') {
        return None;
    }
    if rest.get(quote + 1) == Some(&'\\') {
        let after = quote + 3;
        let end = rest.iter().skip(after).position(|c| *c == '\'')?;
        return Some(after + end + 1);
    }
    (rest.get(quote + 2) == Some(&'\'')).then_some(quote + 3)
}

/// All paths, `use` trees taken apart, from the crate's root where they begin with `crate`,
/// `self`, `super` or the crate's own name.
fn paths(tokens: &[String], module: &[String]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut inline: Vec<(usize, String)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|(level, _)| *level <= depth);
            }
            "mod" if tokens.get(at + 2).is_some_and(|token| token == "{") => {
                inline.push((depth + 1, tokens[at + 1].clone()));
                at += 2;
                continue;
            }
            _ => {}
        }
        let begins = tokens[at].starts_with(is_name)
            && (at == 0
                || tokens[at - 1] != "::"
                || at == 1
                || !tokens[at - 2].starts_with(is_name));
        if !begins {
            at += 1;
            continue;
        }
        let mut found = Vec::new();
        at = tree(tokens, at, &mut Vec::new(), &mut found);
        let mut here = module.to_vec();
        here.extend(inline.iter().map(|(_, name)| name.clone()));
        paths.extend(found.iter().map(|path| resolve(path, &here)));
    }
    paths
}

/// Reads the path (or tree of paths) that begins at `at`; says where it ends.
fn tree(
    tokens: &[String],
    mut at: usize,
    prefix: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> usize {
    let depth = prefix.len();
    let mut grouped = false;
    while at < tokens.len() && tokens[at].starts_with(is_name) {
        prefix.push(tokens[at].clone());
        at += 1;
        if tokens.get(at).is_none_or(|token| token != "::") {
            break;
        }
        at += 1;
        if tokens.get(at).is_some_and(|token| token == "{") {
            grouped = true;
            at += 1;
            while at < tokens.len() && tokens[at] != "}" {
                if tokens[at].starts_with(is_name) {
                    at = tree(tokens, at, prefix, found);
                    if tokens.get(at).is_some_and(|token| token == "as") {
                        at += 2;
                    }
                } else {
                    at += 1;
                }
            }
            at += 1;
            break;
        }
    }
    if !grouped {
        found.push(prefix.clone());
    }
    prefix.truncate(depth);
    at
}

/// The path from the crate's root, if it is one of this crate.
fn resolve(path: &[String], here: &[String]) -> Vec<String> {
    let mut base = match path[0].as_str() {
        "crate" | "aws_ecr_proxy" => Vec::new(),
        "self" | "super" => here.to_vec(),
        _ => return path.to_vec(),
    };
    let mut rest = path;
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "super" => {
                base.pop();
            }
            "self" | "crate" | "aws_ecr_proxy" => {}
            _ => break,
        }
        rest = others;
    }
    [&["crate".to_owned()], base.as_slice(), rest].concat()
}

/// Every Rust file below `folder`, as a path from there and its text.
pub(crate) fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).expect("a readable folder");
        let entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
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
