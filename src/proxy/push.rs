//! Uploads and manifests on their way in. Owns: nothing but the rule that a push is passed on as
//! it is: streamed, never split, joined or repeated. Must not: derive offsets from `Range`.

use crate::message::Reply;

/// The registry's answer to a push; its `Location` names us already.
pub(super) const fn reply(reply: Reply) -> Reply {
    reply
}
