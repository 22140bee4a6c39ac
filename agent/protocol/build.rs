//! Generates the message types and the ttrpc client and service from `proto/agent.proto`, without an external protoc.

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo:rerun-if-changed=proto/agent.proto");
    Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Default::default() })
        .run()
        .expect("proto/agent.proto is valid");
    // The generator's own mod.rs lists the messages; the service stands in a file beside it.
    std::fs::write(format!("{out}/mod.rs"), "pub mod agent;\npub mod agent_ttrpc;\n").expect("OUT_DIR is writable");
}
