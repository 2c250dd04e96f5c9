//! Tags and the catalogue, a page at a time. Owns: cursors and `Link`. Must not: touch a socket.

use serde_json::json;

use crate::core::{Core, lock};
use crate::http::{Head, Reply};
use crate::registry::{decode, error, unknown_repository};

/// ECR's page when the client names no size (aws.md §3).
const PAGE_DEFAULT: usize = 100;

pub(crate) fn catalog(core: &Core, head: &Head) -> Reply {
    let names: Vec<String> = lock(&core.store).repositories.keys().cloned().collect();
    match page(core, head, &names) {
        Ok((page, link)) => reply(core, &json!({"repositories": page}), link),
        Err(refusal) => refusal,
    }
}

pub(crate) fn tags(core: &Core, head: &Head, name: &str) -> Reply {
    if let Some(reply) = unknown_repository(core, name) {
        return reply;
    }
    let mut tags: Vec<String> = {
        let mut store = lock(&core.store);
        let tags = &store.repository(name).tags;
        tags.iter().map(|(tag, _)| tag.clone()).collect()
    };
    if !core.options.quirks.opaque_cursors {
        tags.sort();
    }
    match page(core, head, &tags) {
        Ok((page, link)) => reply(core, &json!({"name": name, "tags": page}), link),
        Err(refusal) => refusal,
    }
}

fn reply(core: &Core, body: &serde_json::Value, link: Option<String>) -> Reply {
    let media_type = if core.options.quirks.plain_text_listings {
        "text/plain; charset=utf-8"
    } else {
        "application/json"
    };
    let reply = Reply::new(200, body.to_string().into_bytes()).with("Content-Type", media_type);
    match link {
        Some(link) => reply.with("Link", link),
        None => reply,
    }
}

/// A page of `items` and the `Link` to the next one.
fn page(
    core: &Core,
    head: &Head,
    items: &[String],
) -> Result<(Vec<String>, Option<String>), Reply> {
    let quirks = &core.options.quirks;
    let size = match head.parameter("n") {
        None if quirks.opaque_cursors => PAGE_DEFAULT,
        None => items.len(),
        Some(n) => n
            .parse()
            .map_err(|_| error(400, "PAGINATION_NUMBER_INVALID", "n is no number"))?,
    };
    if let Some((most, status)) = quirks.page_limit
        && (size > most || (size == 0 && quirks.opaque_cursors))
    {
        let message = format!(
            "Invalid parameter at 'maxResults' failed to satisfy constraint: 'Member must have \
             value less than or equal to {most}'"
        );
        return Err(error(status, "UNSUPPORTED", &message));
    }
    let start = match head.parameter("last") {
        None => 0,
        Some(last) if quirks.opaque_cursors => position(last)
            .ok_or_else(|| error(405, "UNSUPPORTED", "Invalid parameter at 'nextToken'"))?,
        Some(last) => {
            let last = decode(last);
            items
                .iter()
                .position(|item| *item > last)
                .unwrap_or(items.len())
        }
    };
    let start = start.min(items.len());
    let end = start.saturating_add(size).min(items.len());
    let page = items[start..end].to_vec();
    let more = end < items.len() && !page.is_empty();
    let link = more.then(|| {
        let last = if quirks.opaque_cursors {
            cursor(end)
        } else {
            page[page.len() - 1].clone()
        };
        link(core, head, size, &last)
    });
    Ok((page, link))
}

fn link(core: &Core, head: &Head, size: usize, last: &str) -> String {
    let quirks = &core.options.quirks;
    let base = if quirks.absolute_links {
        core.public_base()
    } else {
        String::new()
    };
    let target = format!("{base}{}?n={size}&last={last}", head.path());
    if quirks.several_links {
        // RFC 8288 §3: other relations, other parameters, and separators inside of quotes.
        return format!(
            "<{base}/v2/>; rel=\"start\"; title=\"a, b; c>\", \
             <{target}>; title=\"the, next\"; rel=\"next\"; type=\"application/json\", \
             <https://docs.example.com/help,me>; rel=help"
        );
    }
    format!("<{target}>; rel=\"next\"")
}

/// An opaque cursor, full of characters that a careless proxy would encode or decode.
fn cursor(position: usize) -> String {
    format!("Zm9v+/{position}%2Bx/y%3D==")
}

/// The position behind a cursor that came back byte for byte.
fn position(last: &str) -> Option<usize> {
    let position = last
        .strip_prefix("Zm9v+/")?
        .split('%')
        .next()?
        .parse()
        .ok()?;
    (cursor(position) == last).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_untouched_cursor_is_known() {
        assert_eq!(position(&cursor(42)), Some(42));
        for touched in [
            cursor(42).replace("%2B", "+"),
            cursor(42).replace('+', "%2B"),
            cursor(42).replace("==", "%3D%3D"),
            "42".into(),
        ] {
            assert_eq!(position(&touched), None, "{touched}");
        }
    }
}
