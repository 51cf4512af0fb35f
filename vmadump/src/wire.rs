//! The byte encoding inside a section: little endian integers, counted lists,
//! tagged choices. Decoding bounds every allocation by the bytes that are there.

use serde::{Serialize, Serializer};

/// Bytes that cannot be what they claim to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// What is left of a section.
pub struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor(bytes)
    }

    /// Bytes not yet decoded.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        if n > self.0.len() {
            return Err(Malformed("a section ends in the middle of a value"));
        }
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        Ok(head)
    }
}

/// A value with an encoding.
pub trait Wire: Sized {
    /// Fewest bytes that a value takes; bounds the length of lists.
    const LEAST: usize;
    /// Appends the encoding.
    fn put(&self, out: &mut Vec<u8>);
    /// Decodes one value.
    fn get(from: &mut Cursor<'_>) -> Result<Self, Malformed>;
}

/// Decodes a whole section: nothing may be left.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, Malformed> {
    let mut cursor = Cursor::new(bytes);
    let value = T::get(&mut cursor)?;
    if cursor.remaining() != 0 {
        return Err(Malformed("a section holds more than its contents"));
    }
    Ok(value)
}

/// Encodes one value.
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

macro_rules! integers {
    ($($t:ty),*) => { $(
        impl Wire for $t {
            const LEAST: usize = size_of::<$t>();
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(from: &mut Cursor<'_>) -> Result<Self, Malformed> {
                let bytes = from.take(size_of::<$t>())?;
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(bytes);
                Ok(<$t>::from_le_bytes(raw))
            }
        }
    )* };
}
integers!(u8, u16, u32, u64, i32, i64);

impl Wire for bool {
    const LEAST: usize = 1;
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(from: &mut Cursor<'_>) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a truth value is neither 0 nor 1")),
        }
    }
}

/// A counted string of bytes: paths, names, raw kernel structures.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// As text for people; odd bytes are replaced, control characters escaped.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0)
            .chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
            .collect()
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<T: Into<Vec<u8>>> From<T> for Bytes {
    fn from(from: T) -> Self {
        Bytes(from.into())
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.len() > 256 { write!(f, "[{} bytes]", self.0.len()) } else { write!(f, "{:?}", self.text()) }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) if self.0.len() <= 4096 => s.serialize_str(text),
            _ => s.serialize_str(&format!("[{} bytes]", self.0.len())),
        }
    }
}

/// As text whatever it holds: bytes that are none are escaped (`\xff`).
pub(crate) fn as_text<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().flat_map(|byte| format!("\\x{byte:02x}").into_bytes()).map(char::from));
    }
    s.serialize_str(&text)
}

impl Wire for Bytes {
    const LEAST: usize = 4;
    fn put(&self, out: &mut Vec<u8>) {
        (self.0.len() as u32).put(out);
        out.extend_from_slice(&self.0);
    }
    fn get(from: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let len = u32::get(from)? as usize;
        Ok(Bytes(from.take(len)?.to_vec()))
    }
}

impl<T: Wire> Wire for Vec<T> {
    const LEAST: usize = 4;
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|v| v.put(out));
    }
    fn get(from: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let count = u32::get(from)? as usize;
        if count.saturating_mul(T::LEAST.max(1)) > from.remaining() {
            return Err(Malformed("a list is longer than its section"));
        }
        let mut list = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            list.push(T::get(from)?);
        }
        Ok(list)
    }
}

impl<T: Wire> Wire for Option<T> {
    const LEAST: usize = 1;
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(v) = self {
            v.put(out);
        }
    }
    fn get(from: &mut Cursor<'_>) -> Result<Self, Malformed> {
        Ok(if bool::get(from)? { Some(T::get(from)?) } else { None })
    }
}

impl<T: Wire + Copy + Default, const N: usize> Wire for [T; N] {
    const LEAST: usize = N * T::LEAST;
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|v| v.put(out));
    }
    fn get(from: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let mut all = [T::default(); N];
        for v in &mut all {
            *v = T::get(from)?;
        }
        Ok(all)
    }
}

/// Declares a struct whose encoding is its fields in order.
macro_rules! wire_struct {
    ($(#[$m:meta])* pub struct $name:ident { $( $(#[$fm:meta])* pub $field:ident : $t:ty, )* }) => {
        $(#[$m])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
        pub struct $name { $( $(#[$fm])* pub $field: $t, )* }
        impl $crate::wire::Wire for $name {
            const LEAST: usize = 0 $( + <$t as $crate::wire::Wire>::LEAST )*;
            fn put(&self, out: &mut Vec<u8>) { $( self.$field.put(out); )* }
            fn get(from: &mut $crate::wire::Cursor<'_>) -> Result<Self, $crate::wire::Malformed> {
                Ok($name { $( $field: <$t as $crate::wire::Wire>::get(from)?, )* })
            }
        }
    };
}

/// Declares a choice: one tag byte, then the fields of the variant.
macro_rules! wire_enum {
    ($(#[$m:meta])* pub enum $name:ident { $( $(#[$vm:meta])* $variant:ident = $tag:literal $( { $( $(#[$fm:meta])* $field:ident : $t:ty ),* $(,)? } )? , )* }) => {
        $(#[$m])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $( $(#[$vm])* $variant $( { $( $(#[$fm])* $field: $t ),* } )? , )* }
        impl $crate::wire::Wire for $name {
            const LEAST: usize = 1;
            fn put(&self, out: &mut Vec<u8>) {
                match self { $( $name::$variant $( { $( $field ),* } )? => { out.push($tag); $( $( $field.put(out); )* )? } )* }
            }
            fn get(from: &mut $crate::wire::Cursor<'_>) -> Result<Self, $crate::wire::Malformed> {
                match <u8 as $crate::wire::Wire>::get(from)? {
                    $( $tag => Ok($name::$variant $( { $( $field: <$t as $crate::wire::Wire>::get(from)? ),* } )? ), )*
                    _ => Err($crate::wire::Malformed(concat!("unknown kind of ", stringify!($name)))),
                }
            }
        }
    };
}
pub(crate) use {wire_enum, wire_struct};
