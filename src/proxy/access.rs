//! The rights of clients. Owns: the rules of `READ_ONLY` and `ALLOW_REPOSITORIES`, and what they
//! mean for each route. Must not: do I/O, or know which user asks (`login` does).
//!
//! The rules hold before anything else is looked at: what is cached obeys them like what is not.

use std::sync::Arc;

use super::answer::refuse;
use super::login::Logins;
use super::query::Query;
use crate::config::{AccessSettings, Globs};
use crate::message::{Reply, Request};
use crate::oci::{ErrorCode, OciError, Repository, Route};

/// The rules.
pub struct Access {
    /// None: everybody may come.
    pub logins: Option<Arc<Logins>>,
    read_only: bool,
    /// `OFFLINE`: nothing can be passed on.
    offline: bool,
    repositories: Globs,
}

impl Access {
    /// `logins`: none when nobody has to log in.
    pub fn new(settings: &AccessSettings, offline: bool, logins: Option<Arc<Logins>>) -> Self {
        Self {
            logins,
            read_only: settings.read_only,
            offline,
            repositories: settings.repositories.clone(),
        }
    }

    /// Lets a request pass, or gives the answer that it gets instead. `target` and `route` are
    /// without a registry's host in them.
    pub(super) fn admit(
        &self,
        request: &Request,
        query: &Query,
        route: &Route,
    ) -> Result<(), Box<Reply>> {
        let methods = self.methods(route);
        if !methods.contains(&request.method.as_str()) {
            let refusal = refuse(&self.refuse_method(request));
            return Err(Box::new(refusal.with("Allow", methods.join(", "))));
        }
        let checked = self.check(query, route);
        checked.map_err(|error| Box::new(refuse(&error)))
    }

    /// The methods of `route` that clients may use, as `Allow` lists them. A proxy that only reads
    /// has none for an upload.
    pub(super) fn methods(&self, route: &Route) -> Vec<&'static str> {
        let mut methods = route.methods().to_vec();
        if self.read_only || self.offline {
            methods.retain(|method| matches!(*method, "GET" | "HEAD"));
        }
        methods
    }

    /// Says why a client cannot use this method.
    fn refuse_method(&self, request: &Request) -> OciError {
        let method = &request.method;
        let reads = matches!(method.as_str(), "GET" | "HEAD");
        let why = match (reads, self.read_only, self.offline) {
            (false, true, _) => format!("{method} is not possible: this proxy is read-only"),
            (false, _, true) => format!(
                "{method} is not possible: OFFLINE=true, and a push goes to the registry; use \
                 `aws-ecr-proxy import` to add images"
            ),
            _ => format!("{method} is not possible here"),
        };
        OciError::new(ErrorCode::Unsupported, why)
    }

    /// Refuses a repository that `ALLOW_REPOSITORIES` leaves out: that of the route, and the one
    /// from which a blob would be mounted. `query` and `route` have no host of a registry in them.
    fn check(&self, query: &Query, route: &Route) -> Result<(), OciError> {
        if self.shows_everything() {
            return Ok(());
        }
        let Some(repository) = repository_of(route) else {
            return Ok(());
        };
        if !self.allows(repository) {
            return Err(refuse_repository(repository.as_str()));
        }
        if !matches!(route, Route::Upload(_) | Route::Uploads(_)) {
            return Ok(());
        }
        match query.get("from") {
            Some(from) if !from.parse().is_ok_and(|source| self.allows(&source)) => {
                Err(refuse_repository(from))
            }
            _ => Ok(()),
        }
    }

    /// False for a mount that names no repository: the registry may take the blob from any, also
    /// from one that is left out (distribution-spec "Mounting a blob from another repository").
    pub(super) fn mount_is_open(&self, query: &Query) -> bool {
        self.shows_everything() || query.get("from").is_some()
    }

    /// True when clients may use `repository`.
    pub(super) fn allows(&self, repository: &Repository) -> bool {
        self.repositories.matches(repository.as_str())
    }

    /// True when no repository is left out.
    pub(super) fn shows_everything(&self) -> bool {
        self.repositories.match_everything()
    }

    /// True for a name that clients may see.
    pub(super) fn is_visible(&self, name: &str) -> bool {
        self.shows_everything() || name.parse().is_ok_and(|name| self.allows(&name))
    }
}

fn refuse_repository(name: &str) -> OciError {
    let why = format!("repository {name:?} is not open to clients of this proxy");
    OciError::new(ErrorCode::Denied, why)
}

/// The repository of a route. None for the base, and for the catalogue, whose reply is filtered.
const fn repository_of(route: &Route) -> Option<&Repository> {
    match route {
        Route::Base | Route::Catalog => None,
        Route::Blob(name, _)
        | Route::Manifest(name, _)
        | Route::Referrers(name, _)
        | Route::Tags(name)
        | Route::Upload(name)
        | Route::Uploads(name) => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Headers, Peer};

    fn access(read_only: bool, repositories: &str) -> Access {
        let settings = AccessSettings {
            read_only,
            repositories: Globs::parse(repositories).unwrap(),
            ..AccessSettings::default()
        };
        Access::new(&settings, false, None)
    }

    fn request(target: &str) -> Request {
        Request {
            method: "POST".into(),
            target: target.into(),
            headers: Headers::new(),
            peer: Peer::on_unix_socket(),
            id: "1".into(),
        }
    }

    fn is_denied(access: &Access, target: &str) -> bool {
        let request = request(target);
        let route = Route::parse(request.path()).unwrap();
        let query = Query::parse(request.query().unwrap_or_default()).unwrap();
        match access.check(&query, &route) {
            Ok(()) => false,
            Err(error) => {
                assert_eq!((error.code, error.status), (ErrorCode::Denied, 403));
                true
            }
        }
    }

    #[test]
    fn the_repository_decides_on_every_route() {
        let access = access(false, "team-a/*,base");
        let digest = format!("sha256:{}", "a".repeat(64));
        for of_repository in [
            "manifests/1".to_owned(),
            format!("manifests/{digest}"),
            format!("blobs/{digest}"),
            format!("referrers/{digest}"),
            "tags/list".to_owned(),
            "blobs/uploads/".to_owned(),
            "blobs/uploads/session".to_owned(),
        ] {
            for (name, denied) in [("team-a/x/y", false), ("base", false), ("team-b/x", true)] {
                let target = format!("/v2/{name}/{of_repository}?n=1");
                assert_eq!(is_denied(&access, &target), denied, "{target}");
            }
        }
        assert!(!is_denied(&access, "/v2/") && !is_denied(&access, "/v2/_catalog"));
    }

    #[test]
    fn every_repository_that_a_blob_is_mounted_from_decides() {
        let access = access(false, "team-a/*,base");
        let uploads = "/v2/team-a/x/blobs/uploads/";
        for query in [
            "mount=sha256:1&from=team-a/y",
            "mount=sha256:1&from=team-a%2Fy",
            "mount=sha256:1&from=b%61se",
            "mount=sha256:1",
            "fromage=secret",
            "x=from=secret",
        ] {
            assert!(
                !is_denied(&access, &format!("{uploads}?{query}")),
                "{query}"
            );
        }
        for query in [
            "mount=sha256:1&from=secret",
            "from=team-a%2F..%2F..%2Fsecret",
            "from=team-a/%00",
            "from=base+",
            "from=base%20",
            "from=",
            "from",
            "from=r.example/base",
        ] {
            assert!(is_denied(&access, &format!("{uploads}?{query}")), "{query}");
            let session = format!("{uploads}session?{query}");
            assert!(is_denied(&access, &session), "{session}");
        }
    }

    #[test]
    fn without_patterns_nothing_is_held_against_a_request() {
        let access = access(false, "*");
        assert!(access.shows_everything());
        assert!(!is_denied(&access, "/v2/any/blobs/uploads/?from=what+ever"));
    }

    #[test]
    fn a_proxy_that_only_reads_allows_get_and_head() {
        let (reads, writes) = (access(true, "*"), access(false, "*"));
        for (target, of_both, of_reading) in [
            ("/v2/a/manifests/1", "GET, HEAD, PUT, DELETE", "GET, HEAD"),
            ("/v2/a/tags/list", "GET, HEAD", "GET, HEAD"),
            ("/v2/a/blobs/uploads/", "POST", ""),
        ] {
            let route = Route::parse(target).unwrap();
            assert_eq!(writes.methods(&route).join(", "), of_both);
            assert_eq!(reads.methods(&route).join(", "), of_reading);
        }
        let why = reads.refuse_method(&request("/v2/a/manifests/1")).message;
        assert!(why.ends_with("read-only"), "{why}");
    }

    #[test]
    fn names_that_may_not_be_seen_are_left_out() {
        let names = ["base", "secret", "team-a/x", "Odd Name", "team-b/x"];
        let visible = |allowed: &str| {
            let access = access(false, allowed);
            names.map(|name| access.is_visible(name))
        };
        assert_eq!(visible("team-a/*,base"), [true, false, true, false, false]);
        assert_eq!(visible("*"), [true; 5]);
    }
}
