//! The bundled stand-in registry, for `make run` without an AWS account: holds `sample/hello:1.0`,
//! takes pushes, prints the settings a proxy needs, and serves until it is killed.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing settings is its purpose"
)]

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use standin::{Layer, Options, Standin};

/// Shown for `--help`, and with a wrong argument.
const USAGE: &str = "usage: standin [--out FILE]
Starts a stand-in for ECR on free ports of 127.0.0.1 and prints the settings with which the proxy
uses it, as NAME=value lines for a shell, then `ready`. Serves until it is killed.
  --out FILE   also writes the settings to FILE, whole or not at all";

fn main() -> ExitCode {
    // Not the product: its settings table does not cover this program's one argument.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let out = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--out", file] => Some(PathBuf::from(file)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    let Err(error) = run(out.as_deref());
    eprintln!("standin: {error}");
    ExitCode::FAILURE
}

fn run(out: Option<&Path>) -> io::Result<Infallible> {
    let standin = Standin::start(Options::default());
    let text: &[u8] = b"Hello from the stand-in registry.\n";
    let layer = Layer::of_files(&[("hello.txt", text)]);
    standin.put_image("sample/hello", "1.0", &[layer]);
    let settings: String = standin
        .settings()
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    if let Some(out) = out {
        // A reader that waits for the file must never see half of it.
        let mut draft = out.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        fs::write(&draft, &settings)?;
        fs::rename(&draft, out)?;
    }
    print!("{settings}");
    println!("ready");
    io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}
