//! Uploads, manifests and deletions on their way in. Owns: the rule that a push is passed on as it
//! is (streamed, never split, joined or repeated), and its target. Must not: derive offsets from
//! `Range`.

mod fields;
mod frozen;
pub(super) mod manifest;
pub(super) mod upload;

use crate::oci::Route;

/// The target of an upload as the specification has it, with a slash after `blobs/uploads`. Without
/// the slash, a registry may redirect. `mount` is left out when the registry must not choose the
/// repository: the client then uploads the blob.
pub(super) fn target(target: String, route: &Route, mount_is_open: bool) -> String {
    if !matches!(route, Route::Uploads(_)) {
        return target;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let kept = query.split('&').filter(|parameter| {
        let is_mount = parameter.split('=').next() == Some("mount");
        !parameter.is_empty() && (mount_is_open || !is_mount)
    });
    let query: Vec<&str> = kept.collect();
    let path = path.trim_end_matches('/');
    if query.is_empty() {
        return format!("{path}/");
    }
    format!("{path}/?{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_from_anywhere_becomes_an_upload() {
        let uploads = Route::parse("/v2/a/blobs/uploads/").unwrap();
        for (asked, sent) in [
            ("?mount=x", ""),
            ("?mount=x&y=1", "?y=1"),
            ("?y=1&mount=x", "?y=1"),
            ("?amount=x", "?amount=x"),
        ] {
            let asked = format!("/v2/a/blobs/uploads/{asked}");
            let sent = format!("/v2/a/blobs/uploads/{sent}");
            assert_eq!(target(asked, &uploads, false), sent);
        }
    }

    #[test]
    fn an_upload_begins_below_the_slash() {
        let route = |path| Route::parse(path).unwrap();
        let uploads = route("/v2/a/blobs/uploads/");
        for (asked, sent) in [
            ("/v2/a/blobs/uploads", "/v2/a/blobs/uploads/"),
            ("/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/"),
            (
                "/v2/a/blobs/uploads?mount=x/",
                "/v2/a/blobs/uploads/?mount=x/",
            ),
            ("/v2/a/blobs/uploads/?from=b", "/v2/a/blobs/uploads/?from=b"),
        ] {
            assert_eq!(target(asked.into(), &uploads, true), sent);
        }
        let upload = route("/v2/a/blobs/uploads/1");
        assert_eq!(
            target("/v2/a/blobs/uploads/1".into(), &upload, true),
            "/v2/a/blobs/uploads/1"
        );
    }
}
