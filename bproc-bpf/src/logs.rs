//! What the eBPF programs log, as events of `tracing`.

use aya::{Ebpf, programs::links::PinnedLink};
use aya_log::EbpfLogger;

use crate::error::chain;

/// Reads the programs' log.
pub(crate) type Logs = EbpfLogger<Forward>;

/// Hands log records to `tracing`.
pub(crate) struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "bproc_ebpf", "{message}"),
            log::Level::Warn => tracing::warn!(target: "bproc_ebpf", "{message}"),
            log::Level::Info => tracing::info!(target: "bproc_ebpf", "{message}"),
            log::Level::Debug | log::Level::Trace => {
                tracing::debug!(target: "bproc_ebpf", "{message}");
            }
        }
    }

    fn flush(&self) {}
}

/// The log of programs just loaded. Monitoring goes on without one.
pub(crate) fn of_loaded(ebpf: &mut Ebpf) -> Option<Logs> {
    EbpfLogger::init_with_logger(ebpf, Forward).map_err(|error| lost(&error)).ok()
}

/// The log of programs that are pinned, found through one of their links.
pub(crate) fn of_pinned(link: &std::path::Path) -> Option<Logs> {
    let link: aya::programs::links::FdLink = match PinnedLink::from_pin(link) {
        Ok(link) => link.into(),
        Err(error) => {
            lost(&error);
            return None;
        }
    };
    let info = link.info().map_err(|error| lost(&error)).ok()?;
    EbpfLogger::init_from_id_with_logger(info.program_id(), Forward).map_err(|error| lost(&error)).ok()
}

fn lost(error: &dyn std::error::Error) {
    tracing::debug!(error = chain(error), "the log of the eBPF programs cannot be read");
}
