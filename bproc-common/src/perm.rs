//! Who may start on a node, and who may change whose it is: owner, group and mode, as for files.
//!
//! Only the execute bits of a node's mode count. Pure; the caller of these says who asks.

/// Owner, group and mode of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Mode bits; of them 0111 count.
    pub mode: u32,
    /// Owner's uid.
    pub user: u32,
    /// Group's gid.
    pub group: u32,
}

impl Access {
    /// What a node has that nothing was configured for: root's, 0100.
    pub const INITIAL: Access = Access { mode: 0o100, user: 0, group: 0 };
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Effective uid.
    pub uid: u32,
    /// Effective gid.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

impl Caller<'_> {
    fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// May start a process on the node. The first class that fits decides (owner, group, others); root needs one
    /// execute bit, whichever.
    pub fn may_start(&self, node: &Access) -> bool {
        let bits = if self.uid == 0 {
            0o111
        } else if self.uid == node.user {
            0o100
        } else if self.in_group(node.group) {
            0o010
        } else {
            0o001
        };
        node.mode & bits != 0
    }

    /// May change the node's mode: its owner and root.
    pub fn may_chmod(&self, node: &Access) -> bool {
        self.uid == 0 || self.uid == node.user
    }

    /// May give the node to the group: root, and the owner to a group of his own.
    pub fn may_chgrp(&self, node: &Access, group: u32) -> bool {
        self.uid == 0 || (self.uid == node.user && self.in_group(group))
    }

    /// May give the node to another user, set its state or end it: root.
    pub fn is_admin(&self) -> bool {
        self.uid == 0
    }
}

/// A mode as `ls -l` would show it: `---x--x--x`. The first character is always `-`.
pub fn mode_text(mode: u32) -> [u8; 10] {
    let mut out = *b"-rwxrwxrwx";
    for (i, c) in out.iter_mut().enumerate().skip(1) {
        if mode & (1 << (9 - i)) == 0 {
            *c = b'-';
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Caller<'static> = Caller { uid: 65534, gid: 65534, groups: &[] };
    const ROOT: Caller<'static> = Caller { uid: 0, gid: 0, groups: &[] };
    const OWNER: Caller<'static> = Caller { uid: 10, gid: 1, groups: &[] };
    const MEMBER: Caller<'static> = Caller { uid: 11, gid: 1, groups: &[4, 20] };

    #[test]
    fn the_first_class_that_fits_decides() {
        for mode in 0..0o1000 {
            let node = Access { mode, user: 10, group: 20 };
            assert_eq!(OWNER.may_start(&node), mode & 0o100 != 0);
            assert_eq!(MEMBER.may_start(&node), mode & 0o010 != 0);
            assert_eq!(NOBODY.may_start(&node), mode & 0o001 != 0);
            assert_eq!(ROOT.may_start(&node), mode & 0o111 != 0);
        }
        assert!(ROOT.may_start(&Access::INITIAL) && !OWNER.may_start(&Access::INITIAL));
    }

    #[test]
    fn a_primary_group_counts_as_membership() {
        let caller = Caller { uid: 11, gid: 20, groups: &[] };
        assert!(caller.may_start(&Access { mode: 0o010, user: 10, group: 20 }));
    }

    #[test]
    fn owners_change_mode_and_own_groups_only() {
        let node = Access { mode: 0, user: 10, group: 20 };
        assert!(OWNER.may_chmod(&node) && ROOT.may_chmod(&node) && !MEMBER.may_chmod(&node));
        assert!(OWNER.may_chgrp(&node, 1) && !OWNER.may_chgrp(&node, 5) && ROOT.may_chgrp(&node, 5));
        assert!(!MEMBER.may_chgrp(&node, 20));
        assert!(ROOT.is_admin() && !OWNER.is_admin());
    }

    #[test]
    fn modes_look_as_in_ls() {
        assert_eq!(&mode_text(0o111), b"---x--x--x");
        assert_eq!(&mode_text(0), b"----------");
        assert_eq!(&mode_text(0o100), b"---x------");
        assert_eq!(&mode_text(0o754), b"-rwxr-xr--");
    }
}
