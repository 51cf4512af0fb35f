//! Name and symbol versions of libbproc.so.
//!
//! rustc gives the linker a version script of its own, without a name. LLD, which rustc uses on x86_64 Linux, takes a
//! second one with versions; GNU ld refuses two. So it must be LLD.

fn main() {
    println!("cargo:rerun-if-changed=libbproc.map");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libbproc.so.4");
    if let Ok(dir) = std::env::var("CARGO_MANIFEST_DIR") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,--version-script={dir}/libbproc.map");
    }
}
