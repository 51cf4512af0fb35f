//! Generates the types from the .proto files; protox needs no protoc on the machine.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "bproc/process.proto",
        "bproc/link.proto",
        "bproc/stdio.proto",
        "bproc/client.proto",
        "bproc/files.proto",
        "bproc/api.proto",
    ];
    let set = protox::compile(files, ["proto"])?;
    // Rare, and larger than all else that goes over a link.
    tonic_prost_build::configure()
        .bytes(".bproc.stdio")
        .bytes(".bproc.files.Piece")
        .boxed(".bproc.link.FromNode.body.ask")
        .boxed(".bproc.link.ToNode.body.answer")
        .compile_fds(set)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
