//! Hands the commit and the time of the build to `config::COMMIT` and `config::build_date`.
//!
//! Works without git and without a network. `GIT_COMMIT` names the commit where there is no
//! repository (a container build); `SOURCE_DATE_EPOCH` (reproducible-builds.org) fixes the time.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=GIT_COMMIT");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let commit = variable("GIT_COMMIT").or_else(commit_of_checkout);
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    if !commit.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(format!(
            "GIT_COMMIT={commit:?}: expected letters and digits"
        ));
    }
    // A static binary moves itself to its address; packed, the list of places takes 4 KB in place of
    // 115. Other linkers than GNU's for this target may not know the word.
    if variable("CARGO_CFG_TARGET_ENV").as_deref() == Some("musl")
        && variable("CARGO_CFG_TARGET_ARCH").as_deref() == Some("x86_64")
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    println!("cargo::rustc-env=BUILD_COMMIT={commit}");
    println!("cargo::rustc-env=BUILD_EPOCH_S={}", epoch_s()?);
    Ok(())
}

fn epoch_s() -> Result<u64, String> {
    if let Some(text) = variable("SOURCE_DATE_EPOCH") {
        return text
            .parse()
            .map_err(|_| format!("SOURCE_DATE_EPOCH={text:?}: expected seconds since 1970"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.map_or(0, |since| since.as_secs()))
}

/// The commit, only when the repository is this crate's own: a copy of the sources may lie inside
/// somebody else's.
fn commit_of_checkout() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = variable("CARGO_MANIFEST_DIR")?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.into_string().ok()?;
    (!value.is_empty()).then_some(value)
}
