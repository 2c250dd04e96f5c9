//! Lists of tags and repositories. Owns: what a list is owed on its way to the client. Must not:
//! read or make up a cursor, which is the registry's own word.

use crate::message::Reply;

/// ECR sends lists as `text/plain`, which some clients do not read as JSON.
pub(super) fn names(reply: Reply) -> Reply {
    let media_type = reply.headers.first("Content-Type").unwrap_or_default();
    if reply.status == 200 && !media_type.starts_with("application/") {
        return reply.with("Content-Type", "application/json");
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_json() {
        let plain = Reply::new(200, "text/plain; charset=utf-8", "{}");
        assert_eq!(
            names(plain).headers.first("Content-Type"),
            Some("application/json")
        );
        let error = Reply::new(500, "text/plain", "down");
        assert_eq!(
            names(error).headers.first("Content-Type"),
            Some("text/plain")
        );
    }
}
