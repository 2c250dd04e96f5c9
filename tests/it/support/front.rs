//! A proxy in front of a stand-in of its own. Owns: both, and short words for asking either.
//! Must not: judge what comes back.

use std::net::SocketAddr;
use std::time::Duration;

use standin::{Options, Seen, Server, Standin};

use super::{Http, Proxy, Response};

/// For what happens at once: a debug build on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The proxy and what it is in front of; the proxy ends first.
pub(crate) struct Front {
    pub(crate) proxy: Proxy,
    pub(crate) standin: Standin,
}

impl Front {
    /// In front of a stand-in that behaves as ECR does.
    pub(crate) fn start() -> Self {
        Self::with(Options::default(), &[])
    }

    /// With these options of the stand-in and settings of the proxy.
    pub(crate) fn with(options: Options, settings: &[(&str, &str)]) -> Self {
        let standin = Standin::start(options);
        let proxy = Proxy::in_front_of(&standin, settings);
        Self { proxy, standin }
    }

    /// Where the proxy listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// A connection to the proxy.
    pub(crate) fn http(&self) -> Http {
        Http::connect(self.address())
    }

    /// GET on a connection of its own.
    pub(crate) fn get(&self, target: &str) -> Response {
        Http::get_once(self.address(), target)
    }

    /// HEAD on a connection of its own.
    pub(crate) fn head(&self, target: &str) -> Response {
        self.call("HEAD", target, &[], b"")
    }

    /// Any request on a connection of its own.
    pub(crate) fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        Http::once(self.address(), method, target, headers, body)
    }

    /// What one of the servers saw.
    pub(crate) fn seen(&self, server: Server) -> Vec<Seen> {
        let mut seen = self.standin.requests();
        seen.retain(|seen| seen.server == server);
        seen
    }

    /// How often an ECR token was asked for.
    pub(crate) fn token_calls(&self) -> usize {
        let of_ecr = |seen: &&Seen| {
            let call = seen.header("x-amz-target").unwrap_or_default();
            call.ends_with(".GetAuthorizationToken")
        };
        self.seen(Server::Api).iter().filter(of_ecr).count()
    }
}

/// Code and message of an error document.
pub(crate) fn error_of(response: &Response) -> (String, String) {
    let document: serde_json::Value = serde_json::from_slice(&response.body)
        .unwrap_or_else(|error| panic!("{error}: {:?}", response.text()));
    let error = &document["errors"][0];
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("code"), text("message"))
}

/// Path and query of a URL.
pub(crate) fn target_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    &rest[rest.find('/').expect("a path")..]
}
