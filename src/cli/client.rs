//! `client`: the configuration of a client, ready to be written to its file. Owns: the files and
//! what is filled in. Must not: ask the proxy that runs; it may be on another host.
//!
//! `docs/clients.md` shows the same files.

use std::net::SocketAddr;

use super::invocation::{CommandFault, Invocation};
use super::output::Streams;
use crate::config::{ListenHost, Settings};
use crate::oci::is_authority;

/// The proxy's address in the files.
const HOST: &str = "proxy.example.com:8080";
/// The registry in the files.
const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// The clients and their files. JSON has no comments; the others begin with their place.
const FILES: [(&str, &str); 5] = [
    ("docker", include_str!("client/docker.json")),
    ("containerd", include_str!("client/containerd.toml")),
    ("podman", include_str!("client/podman.toml")),
    ("flux", include_str!("client/flux.yaml")),
    ("kubernetes", include_str!("client/kubernetes.yaml")),
];

/// The clients' names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// Prints the file of a client, for the proxy at `--host`, else where the settings say that it
/// listens.
pub(super) fn run(command: Invocation<'_>, streams: &mut Streams<'_>) -> Result<u8, CommandFault> {
    let client = command.word().unwrap_or_default();
    let text = write(client, command.value("--host"), command.settings);
    Ok(streams.print_result(text))
}

fn write(client: &str, host: Option<&str>, settings: &Settings) -> Result<String, String> {
    let mut files = FILES.iter();
    let (_, text) = files.find(|(name, _)| *name == client).ok_or_else(|| {
        let names = names().collect::<Vec<_>>().join(" ");
        format!("{client:?}: unknown client, expected one of {names}")
    })?;
    if let Some(odd) = host.filter(|host| !is_authority(host)) {
        return Err(format!(
            "--host={odd:?}: expected a host with an optional port, such as cache.lan:5000"
        ));
    }
    let host = host.map_or_else(|| own_address(settings), str::to_owned);
    let text = match settings.tls.enabled {
        // With a certificate that clients trust, nothing has to be allowed.
        true => text
            .replace(&format!("http://{HOST}"), &format!("https://{HOST}"))
            .replace("insecure: true", "insecure: false")
            .replace("insecure = true", "insecure = false")
            .replace(&format!("[\"{HOST}\"]"), "[]"),
        false => (*text).to_owned(),
    };
    let text = text.replace(HOST, &host);
    Ok(match settings.registries.first() {
        Some(registry) => text.replace(REGISTRY, registry.name()),
        None => text,
    })
}

/// The address under which this host's own clients reach the proxy.
fn own_address(settings: &Settings) -> String {
    let port = settings.listen_port;
    match &settings.listen_host {
        ListenHost::Address(address) if !address.is_unspecified() => {
            SocketAddr::new(*address, port).to_string()
        }
        ListenHost::Name(name) => format!("{name}:{port}"),
        ListenHost::Address(_) | ListenHost::Unix(_) => format!("localhost:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::try_run;

    #[test]
    fn the_document_shows_the_same_files() {
        let document = std::fs::read_to_string("docs/clients.md").unwrap();
        for (name, text) in super::FILES {
            let block = format!("\n{text}```\n");
            assert!(
                document.contains(&block),
                "{name} is not in docs/clients.md"
            );
        }
    }

    #[test]
    fn files_are_filled_in() {
        let ecr = ("ECR", "999999999999.dkr.ecr.eu-north-1.amazonaws.com");
        for client in super::names() {
            let host = ["client", client, "--host=cache.lan:5000"];
            let outcome = try_run(&host, &[ecr]);
            assert_eq!((outcome.code, outcome.err.as_str()), (0, ""), "{client}");
            assert!(outcome.out.contains("cache.lan:5000"), "{}", outcome.out);
            for sample in [super::HOST, super::REGISTRY] {
                assert!(!outcome.out.contains(sample), "{}", outcome.out);
            }
            let own = try_run(&["client", client], &[("LISTEN_PORT", "9000")]);
            assert!(own.out.contains("localhost:9000"), "{}", own.out);
        }
        let docker = try_run(&["client", "docker", "--host", "a:1"], &[]).out;
        let parsed: serde_json::Value = serde_json::from_str(&docker).unwrap();
        assert_eq!(parsed["insecure-registries"][0], "a:1");
        // It would stand in the file as it is.
        for odd in ["a:b:c", "a\"x", "http://a", "a b", "a:0", "a\nb", ""] {
            let outcome = try_run(&["client", "containerd", "--host", odd], &[]);
            assert_eq!((outcome.code, outcome.out.as_str()), (64, ""), "{odd:?}");
        }
        let odd = try_run(&["client", "crane"], &[]);
        assert_eq!(odd.code, 64);
        assert!(
            odd.err.contains("expected one of docker containerd"),
            "{}",
            odd.err
        );
        assert!(try_run(&["client"], &[]).err.contains("docker|containerd"));
    }
}
