//! Handmade archives and images for tests: any header, however wrong, can be written.

use super::digest::Digest;
use std::io::Write;
use std::path::Path;
use tar::{EntryType, Header};

/// A tar archive under construction; every method appends one entry.
#[derive(Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

/// One pax record with its length in front.
pub(crate) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar::default()
    }

    /// The archive with its two blocks of zeros.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }

    /// Appends a header that `edit` has the last word on, then content and padding. Owner is whoever runs the test.
    pub(crate) fn raw(mut self, name: &str, kind: EntryType, content: &[u8], edit: impl FnOnce(&mut Header)) -> Tar {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        // Not set_path: it refuses what these tests are about.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Tar {
        self.raw(name, EntryType::Regular, content, |_| {})
    }

    pub(crate) fn folder(self, name: &str) -> Tar {
        self.raw(name, EntryType::Directory, b"", |_| {})
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Tar {
        self.link(name, target, EntryType::Symlink)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Tar {
        self.link(name, target, EntryType::Link)
    }

    fn link(self, name: &str, target: &str, kind: EntryType) -> Tar {
        self.raw(name, kind, b"", |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    pub(crate) fn hard_link_with_size(self, name: &str, target: &str, size: u64) -> Tar {
        self.raw(name, EntryType::Link, b"", |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_size(size);
        })
    }

    pub(crate) fn file_with_header_size(self, name: &str, size: u64, content: &[u8]) -> Tar {
        self.raw(name, EntryType::Regular, content, |header| header.set_size(size))
    }

    pub(crate) fn typed(self, kind: u8, name: &str) -> Tar {
        self.raw(name, EntryType::new(kind), b"", |_| {})
    }

    pub(crate) fn device(self, name: &str, kind: EntryType, major: u32, minor: u32) -> Tar {
        self.raw(name, kind, b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let content: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.raw("pax", EntryType::XHeader, &content, |_| {})
    }

    pub(crate) fn gnu_long_name(self, name: &str) -> Tar {
        self.raw("././@LongLink", EntryType::GNULongName, &[name.as_bytes(), b"\0"].concat(), |_| {})
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// The media type of an uncompressed layer.
pub(crate) const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI image layout under construction, file by file.
pub(crate) struct Layout {
    pub(crate) files: Vec<(String, Vec<u8>)>,
    manifests: Vec<serde_json::Value>,
}

/// A layer as it goes into a [`Layout`]: media type, blob, and the unpacked tar (what diff_ids are of).
pub(crate) struct LayerBlob {
    pub(crate) media_type: String,
    pub(crate) blob: Vec<u8>,
    pub(crate) tar: Vec<u8>,
}

impl LayerBlob {
    pub(crate) fn plain(tar: Tar) -> LayerBlob {
        let tar = tar.finish();
        LayerBlob { media_type: TAR_LAYER.to_owned(), blob: tar.clone(), tar }
    }

    pub(crate) fn gzip(tar: Tar) -> LayerBlob {
        let tar = tar.finish();
        LayerBlob { media_type: format!("{TAR_LAYER}+gzip"), blob: gzip(&tar), tar }
    }

    pub(crate) fn zstd(tar: Tar) -> LayerBlob {
        let tar = tar.finish();
        LayerBlob { media_type: format!("{TAR_LAYER}+zstd"), blob: zstd(&tar), tar }
    }
}

/// The architecture of this machine, as images name it.
pub(crate) fn host_architecture() -> &'static str {
    super::platform::host_architecture()
}

impl Layout {
    pub(crate) fn new() -> Layout {
        let files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        Layout { files, manifests: Vec::new() }
    }

    /// A layout with one image for this machine.
    pub(crate) fn with_image(layers: &[LayerBlob]) -> Layout {
        let mut layout = Layout::new();
        layout.add_image(host_architecture(), layers, true);
        layout
    }

    /// Adds a blob and returns its descriptor.
    pub(crate) fn add_blob(&mut self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = Digest::of(bytes);
        self.files.push((digest.blob_path(), bytes.to_vec()));
        serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    /// Adds an image and lists it in the index, with its platform or without.
    pub(crate) fn add_image(&mut self, architecture: &str, layers: &[LayerBlob], with_platform: bool) {
        let mut manifest = self.image(architecture, layers);
        if with_platform {
            manifest["platform"] = serde_json::json!({ "architecture": architecture, "os": "linux" });
        }
        self.manifests.push(manifest);
    }

    /// Lists a descriptor in the index.
    pub(crate) fn list(&mut self, descriptor: serde_json::Value) {
        self.manifests.push(descriptor);
    }

    /// Adds an image without listing it; returns its manifest's descriptor.
    pub(crate) fn image(&mut self, architecture: &str, layers: &[LayerBlob]) -> serde_json::Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(&layer.tar).to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux",
            "config": { "Cmd": ["/hello"], "Volumes": null, "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.add_blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config).unwrap());
        let layers: Vec<_> = layers.iter().map(|layer| self.add_blob(&layer.media_type, &layer.blob)).collect();
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.add_blob("application/vnd.oci.image.manifest.v1+json", &serde_json::to_vec(&manifest).unwrap())
    }

    /// Replaces the content of a file; the name is as in the layout.
    pub(crate) fn overwrite(&mut self, name: &str, bytes: &[u8]) {
        let file = self.files.iter_mut().find(|(existing, _)| existing == name).expect("no such file");
        file.1 = bytes.to_vec();
    }

    fn all_files(&self) -> Vec<(String, Vec<u8>)> {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": self.manifests });
        let mut files = self.files.clone();
        files.push(("index.json".to_owned(), serde_json::to_vec(&index).unwrap()));
        files
    }

    pub(crate) fn write_folder(&self, folder: &Path) {
        for (name, bytes) in self.all_files() {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    pub(crate) fn to_tar(&self) -> Tar {
        self.all_files().iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes))
    }
}
