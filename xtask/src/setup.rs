//! `cargo xtask setup`: what a fresh Debian machine with rustup's stable
//! toolchain lacks. Each step first looks whether it is done, and says so in
//! one line; nothing is fetched twice.

pub mod apt;
mod linker;
mod packages;
mod rust_src;

use anyhow::Result;
use clap::Args;

pub use linker::bpf_linker;
pub use packages::Purpose;
pub use rust_src::{RustSrc, rust_src};

/// What `cargo xtask setup` is asked for.
#[derive(Args, Debug)]
pub struct SetupArgs {
    /// Also what the benchmarks compare with (an ssh server)
    #[arg(long)]
    bench: bool,
}

/// The command: everything for building, the tour and all tests.
pub fn run(args: &SetupArgs) -> Result<()> {
    let mut purposes = vec![Purpose::Build, Purpose::Tour, Purpose::Test];
    if args.bench {
        purposes.push(Purpose::Bench);
    }
    for_purposes(&purposes)
}

/// The toolchain, and the Debian packages for these purposes only.
pub fn for_purposes(purposes: &[Purpose]) -> Result<()> {
    println!("setup");
    packages::ensure(purposes)?;
    rust_src::ensure()?;
    linker::ensure()
}
