//! Patterns of paths, as `libraries` of the configuration has them: `*`, `?` and `[...]` within a name. A pattern that
//! fits a directory means all files below it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// More files are not taken from one pattern.
const MOST: usize = 65_536;
/// Directories inside of each other.
const DEEPEST: usize = 64;

/// True when the name fits the pattern.
pub fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|skip| fits(rest, &name[skip..])),
        [b'?', rest @ ..] => !name.is_empty() && fits(rest, &name[1..]),
        [b'[', rest @ ..] => match (set(rest, name.first().copied()), name) {
            (Some((true, after)), [_, tail @ ..]) => fits(after, tail),
            (Some(_), _) => false,
            // A bracket that is not closed is itself.
            (None, _) => name.first() == Some(&b'[') && fits(rest, &name[1..]),
        },
        [byte, rest @ ..] => name.first() == Some(byte) && fits(rest, &name[1..]),
    }
}

/// Does the byte belong to the set that begins here? And what follows the set.
fn set(pattern: &[u8], byte: Option<u8>) -> Option<(bool, &[u8])> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let body = &pattern[usize::from(negated)..];
    // A closing bracket that comes first is a member.
    let end = 1 + body.get(1..)?.iter().position(|b| *b == b']')?;
    let (members, after) = (&body[..end], &body[end + 1..]);
    let Some(byte) = byte else { return Some((false, after)) };
    let mut at = 0;
    let mut found = false;
    while at < members.len() {
        if at + 2 < members.len() && members[at + 1] == b'-' {
            found |= (members[at]..=members[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= members[at] == byte;
            at += 1;
        }
    }
    Some((found != negated, after))
}

fn is_pattern(name: &[u8]) -> bool {
    name.iter().any(|b| matches!(b, b'*' | b'?' | b'['))
}

/// The files that fit, in order.
pub fn files(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for name in pattern.as_bytes().split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let mut next = Vec::new();
        for dir in found {
            if !is_pattern(name) {
                let path = dir.join(OsStr::from_bytes(name));
                if path.exists() {
                    next.push(path);
                }
                continue;
            }
            // Hidden names are meant only where they are named.
            let hidden = name.starts_with(b".");
            let fitting = names(&dir).into_iter().filter(|n| hidden == n.as_bytes().starts_with(b"."));
            next.extend(fitting.filter(|n| fits(name, n.as_bytes())).map(|n| dir.join(n)));
        }
        found = next;
        found.truncate(MOST);
    }
    let all = found.into_iter().flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] });
    all.take(MOST).collect()
}

fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

/// All files below a directory. Links to directories are not followed.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut left = vec![(dir.to_path_buf(), 0)];
    while let Some((dir, depth)) = left.pop() {
        for name in names(&dir) {
            let path = dir.join(OsString::from_vec(name.into_vec()));
            let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() && depth < DEEPEST {
                left.push((path, depth + 1));
            } else if path.is_file() && out.len() < MOST {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fit() {
        for (pattern, name, wanted) in [
            ("libc.so.*", "libc.so.6", true),
            ("libc.so.*", "libc.so", false),
            ("lib?.so", "libm.so", true),
            ("lib[a-cm].so", "libm.so", true),
            ("lib[!m].so", "libm.so", false),
            ("[]a]", "]", true),
            ("[a", "[a", true),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes()), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn directories_mean_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a1/b")).unwrap();
        for file in ["a1/b/x.so", "a1/y", "a1/.hidden", "other"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let fit = |pattern: &str| files(&format!("{}/{pattern}", dir.path().display())).len();
        assert_eq!((fit("a*"), fit("a1/*"), fit("a?/b/*.so"), fit("none/*"), fit("other")), (3, 2, 1, 0, 1));
    }
}
