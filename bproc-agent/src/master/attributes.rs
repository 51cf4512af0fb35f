//! Named values of nodes, as long as the master's agent runs.

use bproc_proto::Failure;
use std::collections::BTreeMap;

/// What all names begin with.
const PREFIX: &str = "bproc.";
/// Longest name and value in bytes, and most values of a node.
const MAX_NAME: usize = 63;
const MAX_VALUE: usize = 64;
const MAX_EACH: usize = 32;

/// The values of all nodes.
#[derive(Debug, Default)]
pub struct Attributes(BTreeMap<i32, BTreeMap<String, Vec<u8>>>);

fn refuse<T>(number: i32, message: String) -> Result<T, Failure> {
    Err(Failure { number, message })
}

impl Attributes {
    /// A value.
    ///
    /// # Errors
    /// ENODATA: the node has none of this name.
    pub fn get(&self, node: i32, name: &str) -> Result<Vec<u8>, Failure> {
        match self.0.get(&node).and_then(|all| all.get(name)) {
            Some(value) => Ok(value.clone()),
            None => refuse(libc::ENODATA, format!("node {node} has no attribute `{name}`")),
        }
    }

    /// Sets a value, or takes it away.
    ///
    /// # Errors
    /// EINVAL for a name or value that cannot be, ENODATA for one to take away that is not there, ENOSPC.
    pub fn set(&mut self, node: i32, name: String, value: Option<Vec<u8>>) -> Result<(), Failure> {
        let Some(value) = value else {
            return match self.0.get_mut(&node).and_then(|all| all.remove(&name)) {
                Some(_) => Ok(()),
                None => refuse(libc::ENODATA, format!("node {node} has no attribute `{name}`")),
            };
        };
        let named = name.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty() && !rest.contains('\0'));
        if !named || name.len() > MAX_NAME || ["bproc.state", "bproc.addr"].contains(&name.as_str()) {
            return refuse(libc::EINVAL, format!("`{name}` cannot be set as an attribute"));
        }
        if value.len() > MAX_VALUE {
            return refuse(libc::EINVAL, format!("the value of `{name}` is longer than {MAX_VALUE} bytes"));
        }
        let all = self.0.entry(node).or_default();
        if all.len() >= MAX_EACH && !all.contains_key(&name) {
            return refuse(libc::ENOSPC, format!("node {node} has {MAX_EACH} attributes already"));
        }
        all.insert(name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_kept() {
        let mut all = Attributes::default();
        let set = |all: &mut Attributes, name: &str, value: &[u8]| {
            all.set(1, name.into(), Some(value.into())).map_err(|failure| failure.number)
        };
        assert_eq!(set(&mut all, "bproc.rack", b"7"), Ok(()));
        assert_eq!(all.get(1, "bproc.rack"), Ok(b"7".to_vec()));
        assert_eq!(all.get(2, "bproc.rack").map_err(|f| f.number), Err(libc::ENODATA));
        for name in ["rack", "bproc.", "bproc.addr", &format!("bproc.{}", "x".repeat(58))] {
            assert_eq!(set(&mut all, name, b""), Err(libc::EINVAL), "{name}");
        }
        assert_eq!(set(&mut all, "bproc.long", &[0; 65]), Err(libc::EINVAL));
        for number in 0..31 {
            assert_eq!(set(&mut all, &format!("bproc.n{number}"), b""), Ok(()));
        }
        assert_eq!(set(&mut all, "bproc.more", b""), Err(libc::ENOSPC));
        assert_eq!(set(&mut all, "bproc.rack", b"8"), Ok(()));
        assert!(all.set(1, "bproc.rack".into(), None).is_ok() && all.set(1, "bproc.rack".into(), None).is_err());
    }
}
