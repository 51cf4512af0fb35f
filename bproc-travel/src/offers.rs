//! What the master gives to nodes that ask: only files that a program that travelled is made of, by their digest.
//! They stay open where possible, so that one that is replaced meanwhile (an upgrade) still travels as it was.

use crate::digest::{Digest, Identity};
use crate::open;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Files kept open.
const MAX_OPEN: usize = 256;

struct Offer {
    path: PathBuf,
    identity: Identity,
    file: Option<Arc<File>>,
    used: u64,
}

/// Files that nodes may ask for.
#[derive(Default)]
pub struct Offers(Mutex<State>);

#[derive(Default)]
struct State {
    offers: HashMap<Digest, Offer>,
    clock: u64,
    open: usize,
}

impl Offers {
    /// From now on nodes may ask for this.
    pub fn offer(&self, digest: Digest, path: PathBuf, identity: Identity, file: File) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let used = state.clock;
        let offer = Offer { path, identity, file: Some(Arc::new(file)), used };
        if state.offers.insert(digest, offer).is_none_or(|old| old.file.is_none()) {
            state.open += 1;
        }
        state.close_some();
    }

    /// Opens what a node asks for, with its size. `None`: it was never offered.
    ///
    /// # Errors
    /// It has changed since (ESTALE), or cannot be read.
    pub fn open(&self, digest: &Digest) -> io::Result<Option<(Arc<File>, u64)>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let now = state.clock;
        let Some(offer) = state.offers.get_mut(digest) else { return Ok(None) };
        offer.used = now;
        let size = offer.identity.size;
        if let Some(file) = &offer.file {
            return Ok(Some((file.clone(), size)));
        }
        let file = open::regular(&offer.path)?;
        if Identity::of(&file.metadata()?) != offer.identity {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        let file = Arc::new(file);
        offer.file = Some(file.clone());
        state.open += 1;
        state.close_some();
        Ok(Some((file, size)))
    }
}

impl State {
    fn close_some(&mut self) {
        if self.open <= MAX_OPEN {
            return;
        }
        let mut uses: Vec<u64> = self.offers.values().filter(|o| o.file.is_some()).map(|o| o.used).collect();
        uses.sort_unstable();
        let limit = uses.get(uses.len() / 2).copied().unwrap_or(0);
        for offer in self.offers.values_mut().filter(|o| o.used < limit) {
            offer.file = None;
        }
        self.open = self.offers.values().filter(|o| o.file.is_some()).count();
    }
}
