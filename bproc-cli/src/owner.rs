//! Names of users and groups, and their numbers.

use nix::unistd::{Gid, Group, Uid, User};

/// Name of a user, `#uid` when he has none.
pub(crate) fn user_name(uid: u32) -> String {
    let found = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    found.map_or_else(|| format!("#{uid}"), |user| user.name)
}

/// Name of a group, `#gid` when it has none.
pub(crate) fn group_name(gid: u32) -> String {
    let found = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    found.map_or_else(|| format!("#{gid}"), |group| group.name)
}

fn number(text: &str) -> Option<u32> {
    // -1 means "leave it" to chown(2) and its like: nobody's number.
    text.strip_prefix('#').unwrap_or(text).parse().ok().filter(|n| *n != u32::MAX)
}

/// uid by name or number.
pub(crate) fn user_id(text: &str) -> Option<u32> {
    User::from_name(text).ok().flatten().map(|user| user.uid.as_raw()).or_else(|| number(text))
}

/// gid by name or number.
pub(crate) fn group_id(text: &str) -> Option<u32> {
    Group::from_name(text).ok().flatten().map(|group| group.gid.as_raw()).or_else(|| number(text))
}
