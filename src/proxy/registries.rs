//! Which registry a request means. Owns: the closed list of registries and of `NAMESPACES`, and the
//! two ways in which clients name one of them: `ns=HOST` (containerd, buildkit) and `/v2/HOST/…`
//! (podman, CRI-O, docker). Must not: make an address of anything that a client sends.
//!
//! `ns` names the registry that an image comes from. When that is neither a registry nor an origin
//! of ours, the client was told to ask us all the same (a mirror), so the path alone counts, and
//! the default registry answers NAME_UNKNOWN if it has no such repository. Another private registry
//! of ECR is refused: its repositories have names like our own, and would be mistaken for them.
//!
//! A name of a repository may hold dots, so `/v2/my.app/x/…` is a repository unless `my.app` is in
//! the list. A path is refused only when it cannot be a repository of the default registry: a host
//! with a port, or a registry of ECR that is not in the list.

use super::query::Query;
use crate::aws::ecr::EcrHost;
use crate::config::ImageOrigin;
use crate::message::Request;
use crate::oci::{self, ErrorCode, OciError, Registry, Route};
use crate::uri::{decode_visible, query_of};

const NAMESPACE: &str = "ns";

/// The closed list.
#[derive(Debug)]
pub(super) struct Registries {
    /// The default one comes first. Empty: only the identity's own registry.
    pub(super) list: Vec<Registry>,
    /// `NAMESPACES`
    origins: Vec<ImageOrigin>,
    /// The registries are other proxies (`UPSTREAM_AUTH=none`).
    chained: bool,
}

/// The registry that a request means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// The first of the list: the request names no registry, or this one.
    Default,
    /// Another one of the list.
    Known(Registry),
    /// The identity's own registry, if that turns out to have this name. It is not known yet.
    IfCalled(String),
}

/// A registry, and where in it.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    choice: Choice,
    /// What stands before repositories there, with its slash; or nothing.
    added: String,
}

impl Place {
    /// True when a request may name both.
    fn agrees_with(&self, other: &Self) -> bool {
        let one_prefix =
            self.added.is_empty() || other.added.is_empty() || self.added == other.added;
        self.choice == other.choice && one_prefix
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::from(Choice::Default)
    }
}

impl From<Choice> for Place {
    fn from(choice: Choice) -> Self {
        let added = String::new();
        Self { choice, added }
    }
}

/// A request whose registry is known, and the words in which it named the registry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvedRequest {
    pub(super) choice: Choice,
    pub(super) route: Route,
    /// The path without a host in it.
    pub(super) path: String,
    /// The target as upstream gets it.
    pub(super) target: String,
    /// The parameters in it that decide.
    pub(super) query: Query,
    /// The host in the path as the client wrote it, with its slash; or nothing.
    pub(super) prefix: String,
    /// What was put before the repository for an origin, with its slash; or nothing.
    pub(super) added: String,
    /// The parameter `ns` as the client wrote it, if it decided.
    pub(super) parameter: Option<String>,
    /// Its value, decoded.
    pub(super) namespace: Option<String>,
}

impl Registries {
    pub(super) const fn new(list: Vec<Registry>, origins: Vec<ImageOrigin>, chained: bool) -> Self {
        Self {
            list,
            origins,
            chained,
        }
    }

    /// Finds the registry that a request names. `own` returns the identity's registry if that is
    /// known; it must not block.
    ///
    /// # Errors
    /// The error document to answer with.
    pub(super) fn resolve(
        &self,
        request: &Request,
        own: &dyn Fn() -> Option<Registry>,
    ) -> Result<ResolvedRequest, OciError> {
        let (prefix, by_path) = self.find_prefix(request.path(), own)?;
        let path = without_prefix(request.path(), &prefix);
        let route = Route::parse(&path)?;
        let mut named = by_path;
        let (mut parameter, mut namespace) = (None, None);
        if honours_namespace(&request.method, &route) {
            for (raw, name) in read_namespaces(request.query().unwrap_or_default()) {
                let Some(by_name) = self.find_namespace(&name, own)? else {
                    continue;
                };
                if named
                    .as_ref()
                    .is_some_and(|other| !other.agrees_with(&by_name))
                {
                    let why = format!("the request names {name:?} and another registry");
                    return Err(OciError::new(ErrorCode::NameUnknown, why));
                }
                named = Some(by_name);
                (parameter, namespace) = (Some(raw), Some(name));
            }
        }
        let Place { choice, added } = named.unwrap_or_default();
        let (path, added) = add_prefix(path, &route, added);
        let route = if added.is_empty() {
            route
        } else {
            Route::parse(&path)?
        };
        let target = self.build_target(request, &path, &route, &choice, own);
        let query = Query::parse(query_of(&target))?;
        Ok(ResolvedRequest {
            choice,
            route,
            path,
            target,
            query,
            prefix,
            added,
            parameter,
            namespace,
        })
    }

    /// Finds the place that `ns` names; none when it names nothing of ours.
    fn find_namespace(
        &self,
        name: &str,
        own: &dyn Fn() -> Option<Registry>,
    ) -> Result<Option<Place>, OciError> {
        let found = self.find_place(name, own);
        let is_private = || matches!(EcrHost::parse(name), Some(EcrHost::Private { .. }));
        let is_refused = || !oci::is_authority(name) || is_private() || self.origin(name).is_some();
        if found.is_none() && is_refused() {
            return Err(unknown_registry(name));
        }
        Ok(found)
    }

    /// True for what begins a path and is no part of the default registry.
    fn cannot_be_a_repository(&self, name: &str) -> bool {
        name.contains(':') || EcrHost::parse(name).is_some() || self.origin(name).is_some()
    }

    fn origin(&self, name: &str) -> Option<&ImageOrigin> {
        let mut origins = self.origins.iter();
        origins.find(|origin| origin.name.eq_ignore_ascii_case(name))
    }

    /// Finds the place of an origin, or a registry.
    fn find_place(&self, name: &str, own: &dyn Fn() -> Option<Registry>) -> Option<Place> {
        let Some(origin) = self.origin(name) else {
            return self.find(name, own).map(Place::from);
        };
        let choice = match &origin.registry {
            Some(registry) => self.find(registry, own)?,
            None => Choice::Default,
        };
        let added = match origin.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Some(Place { choice, added })
    }

    /// The host that a path begins with, as it is written and with its slash, and the place that it
    /// names.
    fn find_prefix(
        &self,
        path: &str,
        own: &dyn Fn() -> Option<Registry>,
    ) -> Result<(String, Option<Place>), OciError> {
        let none = Ok((String::new(), None));
        let Some(rest) = path.strip_prefix("/v2/") else {
            return none;
        };
        let first = rest.split('/').next().unwrap_or_default();
        let Some(name) = decode_visible(first).filter(|name| is_hostlike(name)) else {
            return none;
        };
        match self.find_place(&name, own) {
            Some(place) => Ok((format!("{first}/"), Some(place))),
            None if self.cannot_be_a_repository(&name) => Err(unknown_registry(&name)),
            None => none,
        }
    }

    /// Finds the registry of this name.
    pub(super) fn find(&self, name: &str, own: &dyn Fn() -> Option<Registry>) -> Option<Choice> {
        if !oci::is_authority(name) {
            return None;
        }
        let Some(default) = self.list.first() else {
            return match own() {
                Some(own) => is_named(&own, name).then_some(Choice::Default),
                None => EcrHost::parse(name).map(|_| Choice::IfCalled(name.to_ascii_lowercase())),
            };
        };
        if let Some(listed) = self.list.iter().find(|registry| is_named(registry, name)) {
            return Some(if listed == default {
                Choice::Default
            } else {
                Choice::Known(listed.clone())
            });
        }
        // There is one registry and its name is not ECR's (another proxy, a private endpoint, a
        // test): clients still use the names that ECR gave to their images.
        let stands_for_ecr = self.list.len() == 1 && EcrHost::parse(default.authority()).is_none();
        if !stands_for_ecr || EcrHost::parse(name).is_none() {
            return None;
        }
        Some(if self.chained {
            // The other proxy has a closed list, too, perhaps with several registries.
            Choice::Known(default.serving(name))
        } else {
            Choice::Default
        })
    }

    /// Builds the target without the names of the registry; all else stays byte for byte.
    fn build_target(
        &self,
        request: &Request,
        path: &str,
        route: &Route,
        choice: &Choice,
        own: &dyn Fn() -> Option<Registry>,
    ) -> String {
        let Some(query) = request.query() else {
            return path.to_owned();
        };
        let mut kept: Vec<String> = query
            .split('&')
            .filter(|parameter| !is_namespace(parameter))
            .map(str::to_owned)
            .collect();
        if kept.is_empty() && !query.is_empty() {
            return path.to_owned();
        }
        if matches!(route, Route::Uploads(_)) {
            self.translate_mount(&mut kept, choice, own);
        }
        format!("{path}?{}", kept.join("&"))
    }

    /// A client that names the registry in the path does so in `from` of a mount, too. Nothing can
    /// be mounted from another registry: then the blob is uploaded like any other.
    fn translate_mount(
        &self,
        parameters: &mut Vec<String>,
        choice: &Choice,
        own: &dyn Fn() -> Option<Registry>,
    ) {
        let from = |text: &String| text.strip_prefix("from=").and_then(decode_visible);
        let Some(repository) = parameters.iter().find_map(from) else {
            return;
        };
        let Some((host, rest)) = repository.split_once('/') else {
            return;
        };
        match self.find(host, own).filter(|_| is_hostlike(host)) {
            None => {}
            Some(found) if found == *choice => {
                for parameter in parameters.iter_mut() {
                    if parameter.starts_with("from=") {
                        *parameter = format!("from={rest}");
                    }
                }
            }
            Some(_) => parameters.retain(|parameter| {
                !parameter.starts_with("from=") && !parameter.starts_with("mount=")
            }),
        }
    }
}

/// True when the registry has this name, or ECR has this other name for it (FIPS, dual-stack).
pub(super) fn is_named(registry: &Registry, name: &str) -> bool {
    let place = |host: &str| match EcrHost::parse(host) {
        Some(EcrHost::Private {
            account, region, ..
        }) => Some((account, region)),
        _ => None,
    };
    let same = || place(registry.name()).is_some_and(|own| place(name) == Some(own));
    registry.is_called(name) || (oci::split_port(name).1.is_none() && same())
}

/// The 404 for a name that is not in the closed list.
pub(super) fn unknown_registry(name: &str) -> OciError {
    let why = format!("{name:?} is not a registry of this proxy; the setting ECR lists them");
    OciError::new(ErrorCode::NameUnknown, why)
}

/// True when `ns` decides. A push names its registry by the path alone (containerd sends no `ns`
/// with it), and the state of an upload is asked for in the same way. A ping means no registry.
fn honours_namespace(method: &str, route: &Route) -> bool {
    let no_matter = matches!(route, Route::Base | Route::Upload(_) | Route::Uploads(_));
    matches!(method, "GET" | "HEAD") && !no_matter
}

/// Puts an origin's prefix before the repository, unless the client has done so itself
/// (`override_path`); returns what was put there.
fn add_prefix(path: String, route: &Route, added: String) -> (String, String) {
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    if matches!(route, Route::Base | Route::Catalog) || rest.starts_with(&added) {
        return (path, String::new());
    }
    (format!("/v2/{added}{rest}"), added)
}

fn without_prefix(path: &str, prefix: &str) -> String {
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    match rest.strip_prefix(prefix) {
        _ if prefix.is_empty() => path.to_owned(),
        Some(rest) => format!("/v2/{rest}"),
        // `/v2/HOST`, without a slash at the end.
        None => "/v2/".to_owned(),
    }
}

fn is_namespace(parameter: &str) -> bool {
    let name = parameter.split('=').next();
    name == Some(NAMESPACE)
}

/// The parameters `ns` that are not empty: as written, and decoded.
fn read_namespaces(query: &str) -> impl Iterator<Item = (String, String)> {
    let parameters = query.split('&').filter(|parameter| is_namespace(parameter));
    parameters.filter_map(|parameter| {
        let value = parameter.split_once('=')?.1;
        // A value that cannot be decoded is no name of a registry either.
        let name = decode_visible(value).unwrap_or_else(|| value.to_owned());
        (!name.is_empty()).then(|| (parameter.to_owned(), name))
    })
}

/// True for a host, as docker tells it from the first word of a repository (distribution's
/// reference grammar).
fn is_hostlike(name: &str) -> bool {
    (name.contains(['.', ':']) || name == "localhost") && oci::is_authority(name)
}

#[cfg(test)]
mod tests;
