//! Writes flattened device trees (Devicetree Specification 0.4, chapter 5).
//!
//! The crate vm-fdt does the same for names of up to 31 characters, as its specification has them; this platform's are longer
//! (`ibm,processor-radix-AP-encodings`), and Linux takes any. Knows no machine.

use crate::Region;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const LAST_COMPATIBLE_VERSION: u32 = 16;
const HEADER_SIZE: usize = 40;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

/// A device tree in the making.
#[derive(Default)]
pub(super) struct FlatTree {
    structure: Vec<u8>,
    strings: Vec<u8>,
    /// Properties' names and where they are in `strings`.
    names: Vec<(&'static str, u32)>,
}

/// A node that properties can be given to, and then nodes.
pub(super) struct Node<'a>(&'a mut FlatTree);

impl FlatTree {
    /// Writes a tree with the root that `root` fills in; memory in `reserved` is not the kernel's to use.
    pub(super) fn write(reserved: &[Region], root: impl FnOnce(&mut Node<'_>)) -> Vec<u8> {
        let mut tree = FlatTree::default();
        Node(&mut tree).node("", root);
        tree.word(END);

        let reservations: Vec<u8> = reserved
            .iter()
            .map(|region| (region.start, region.size))
            .chain([(0, 0)])
            .flat_map(|(start, size)| [start.to_be_bytes(), size.to_be_bytes()].concat())
            .collect();
        let structure_at = HEADER_SIZE + reservations.len();
        let strings_at = structure_at + tree.structure.len();
        let header = [
            MAGIC,
            (strings_at + tree.strings.len()) as u32,
            structure_at as u32,
            strings_at as u32,
            HEADER_SIZE as u32,
            VERSION,
            LAST_COMPATIBLE_VERSION,
            0, // The boot vCPU's number.
            tree.strings.len() as u32,
            tree.structure.len() as u32,
        ];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.extend(reservations);
        bytes.extend(tree.structure);
        bytes.extend(tree.strings);
        bytes
    }

    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }

    /// Appends bytes and zeros up to the next word.
    fn padded(&mut self, bytes: &[u8]) {
        self.structure.extend(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    /// Where a name is among the strings, which have each once.
    fn name(&mut self, name: &'static str) -> u32 {
        if let Some((_, at)) = self.names.iter().find(|(known, _)| *known == name) {
            return *at;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.names.push((name, at));
        at
    }
}

impl Node<'_> {
    /// A node within this one, filled in by `content`.
    pub(super) fn node(&mut self, name: &str, content: impl FnOnce(&mut Node<'_>)) {
        self.0.word(BEGIN_NODE);
        self.0.padded(&terminated(name));
        content(&mut Node(self.0));
        self.0.word(END_NODE);
    }

    /// A property of bytes; with none, its being there is what it says.
    pub(super) fn bytes(&mut self, name: &'static str, value: &[u8]) {
        let name = self.0.name(name);
        self.0.word(PROPERTY);
        self.0.word(value.len() as u32);
        self.0.word(name);
        self.0.padded(value);
    }

    /// A property of 32-bit cells.
    pub(super) fn cells(&mut self, name: &'static str, cells: &[u32]) {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.bytes(name, &value);
    }

    /// A property of numbers of two cells each.
    pub(super) fn quads(&mut self, name: &'static str, quads: &[u64]) {
        let value: Vec<u8> = quads.iter().flat_map(|quad| quad.to_be_bytes()).collect();
        self.bytes(name, &value);
    }

    /// A property of text.
    pub(super) fn text(&mut self, name: &'static str, value: &str) {
        self.bytes(name, &terminated(value));
    }

    /// A property of several texts.
    pub(super) fn texts(&mut self, name: &'static str, values: &[&str]) {
        let value: Vec<u8> = values.iter().flat_map(|value| terminated(value)).collect();
        self.bytes(name, &value);
    }
}

fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::read_back;

    #[test]
    fn dtc_reads_what_was_written() {
        let bytes = FlatTree::write(&[Region { start: 0x1000, size: 0x2000 }], |root| {
            root.node("odd", |node| {
                node.cells("cells", &[0, 1]);
                node.bytes("ibm,processor-radix-AP-encodings", &[1, 2, 3]);
                node.bytes("flag", &[]);
                node.texts("names", &["a", "bcd"]);
                node.quads("quads", &[1 << 32]);
                node.node("inner", |inner| inner.text("deep", "er"));
            });
            root.node("last", |_| {});
        });
        let expected = [
            "//memreserve/\t0x0000000000001000 0x0000000000002000",
            "/odd/cells = <0x00 0x01>",
            "/odd/ibm,processor-radix-AP-encodings = [01 02 03]",
            "/odd/flag",
            "/odd/names = \"a\\0bcd\"",
            "/odd/quads = <0x01 0x00>",
            "/odd/inner/deep = \"er\"",
        ];
        assert_eq!(read_back(&bytes)[1..], expected);
    }
}
