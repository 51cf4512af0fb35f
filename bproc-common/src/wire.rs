//! Plain-old-data in and out of byte slices, without `unsafe`.

/// A fixed-size record that goes over a local socket in native byte order.
pub trait Record: Sized + Copy {
    /// Bytes of one record.
    const SIZE: usize;
    /// Writes the record to the front of `out`, which holds at least `SIZE` bytes.
    fn put(&self, out: &mut [u8]);
    /// Reads a record from the front of `bytes`; `None` when they are too few.
    fn get(bytes: &[u8]) -> Option<Self>;
}

/// Defines a `repr(C)` struct of integers and its [`Record`] implementation.
/// Fields are laid out in order without padding; the size is asserted.
#[macro_export]
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident : $size:literal { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        impl $crate::wire::Record for $name {
            const SIZE: usize = $size;
            #[allow(unused_assignments)]
            fn put(&self, out: &mut [u8]) {
                let mut at = 0;
                $(
                    let n = core::mem::size_of::<$ty>();
                    out[at..at + n].copy_from_slice(&self.$field.to_ne_bytes());
                    at += n;
                )*
            }
            #[allow(unused_assignments)]
            fn get(bytes: &[u8]) -> Option<Self> {
                if bytes.len() < $size { return None; }
                let mut at = 0;
                $(
                    let n = core::mem::size_of::<$ty>();
                    let $field = <$ty>::from_ne_bytes(bytes.get(at..at + n)?.try_into().ok()?);
                    at += n;
                )*
                Some($name { $($field),* })
            }
        }
    };
}
