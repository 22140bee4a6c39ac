//! Hypercalls that are the machine's to answer (LoPAR, chapter 14; numbers in its table 14.1): a number and nine arguments as
//! data, and what comes back. Most calls never come here, because the host's kernel answers them.
//!
//! Knows nobody who carries them out.

use super::layout;

const H_GET_TERM_CHAR: u64 = 0x54;
const H_PUT_TERM_CHAR: u64 = 0x58;
const H_STUFF_TCE: u64 = 0x138;
const H_SET_MODE: u64 = 0x31c;
const H_REGISTER_PROC_TBL: u64 = 0x37c;
const H_GET_CPU_CHARACTERISTICS: u64 = 0x3c8;
/// The one that RTAS's code makes, of no specification: [`super::rtas::CODE`].
const H_RTAS: u64 = 0xf000;

/// What a call comes back with (LoPAR, section 14.5.2, "Hypervisor Call Return Codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Status {
    /// Done.
    Success = 0,
    /// There is no such call.
    Function = -2,
    /// The first argument makes no sense.
    Parameter = -4,
    /// The second.
    P2 = -55,
    /// The third.
    P3 = -56,
    /// The fourth.
    P4 = -57,
    /// A flag that does not exist here.
    UnsupportedFlag = -256,
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// An RTAS call.
    Rtas {
        /// Its buffer, as [`super::rtas::Call`] reads it.
        buffer: u64,
    },
    /// Text for the terminal.
    Put(Text),
    /// Text from the terminal: the first result is its length.
    Get,
    /// Changes what every vCPU does on interrupts.
    SetMode(Mode),
    /// Where the guest's translation tables are.
    Translation(ProcessTable),
    /// Clears entries of the table that translates PCI functions' addresses, in which nothing ever is.
    ClearTranslations,
    /// The results are two masks: what the processor does about speculation, and what the guest should.
    CpuCharacteristics,
}

/// Up to 16 characters, as two registers hold them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    bytes: [u8; 16],
    length: usize,
}

/// A change of how interrupts are taken (LoPAR, section 14.5.4.4.1, `H_SET_MODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In which byte order.
    LittleEndian(bool),
    /// Whether with translation on, at the kernel's effective addresses ("alternate interrupt location" 3).
    Relocated(bool),
}

/// The guest's process table, from which its radix trees hang (Power ISA 3.0B, book III, section 5.7.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessTable {
    /// Second doubleword of the partition table's entry: radix, the table's address, and its size.
    pub entry: u64,
    /// The guest invalidates translations by itself.
    pub invalidates: bool,
}

impl Hypercall {
    /// Understands call `number` with what was in r4 to r12.
    ///
    /// # Errors
    /// The status to come back with, where it is nothing that could be carried out.
    pub fn read(number: u64, arguments: &[u64; 9]) -> Result<Hypercall, Status> {
        let &[first, second, third, fourth, ..] = arguments;
        match number {
            H_RTAS => Ok(Hypercall::Rtas { buffer: first }),
            H_PUT_TERM_CHAR | H_GET_TERM_CHAR if first != u64::from(layout::TERMINAL_UNIT) => Err(Status::Parameter),
            H_PUT_TERM_CHAR => Ok(Hypercall::Put(Text::read(second, [third, fourth])?)),
            H_GET_TERM_CHAR => Ok(Hypercall::Get),
            H_SET_MODE => Ok(Hypercall::SetMode(Mode::read(first, second, [third, fourth])?)),
            H_REGISTER_PROC_TBL => Ok(Hypercall::Translation(ProcessTable::read(first, second, third, fourth)?)),
            H_STUFF_TCE if first != u64::from(layout::DMA_TABLE) => Err(Status::Parameter),
            // An entry that is not empty would be to let a function at memory, which it is anyway.
            H_STUFF_TCE if third != 0 => Err(Status::P3),
            H_STUFF_TCE => Ok(Hypercall::ClearTranslations),
            H_GET_CPU_CHARACTERISTICS => Ok(Hypercall::CpuCharacteristics),
            _ => Err(Status::Function),
        }
    }
}

impl Text {
    fn read(length: u64, registers: [u64; 2]) -> Result<Text, Status> {
        let length = usize::try_from(length).ok().filter(|length| *length <= 16).ok_or(Status::P2)?;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&registers[0].to_be_bytes());
        bytes[8..].copy_from_slice(&registers[1].to_be_bytes());
        Ok(Text { bytes, length })
    }

    /// The characters.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Mode {
    fn read(flags: u64, resource: u64, values: [u64; 2]) -> Result<Mode, Status> {
        const ADDRESS_TRANSLATION: u64 = 3;
        const ENDIANNESS: u64 = 4;
        let mode = match (resource, flags) {
            (ENDIANNESS, 0 | 1) => Mode::LittleEndian(flags == 1),
            (ADDRESS_TRANSLATION, 0 | 3) => Mode::Relocated(flags == 3),
            (ENDIANNESS | ADDRESS_TRANSLATION, _) => return Err(Status::UnsupportedFlag),
            _ => return Err(Status::P2),
        };
        match values {
            [0, 0] => Ok(mode),
            [0, _] => Err(Status::P4),
            _ => Err(Status::P3),
        }
    }

    /// The bits of the logical partitioning control register that it concerns, and what they become (Power ISA 3.0B, book III,
    /// section 2.2).
    #[must_use]
    pub fn partitioning(self) -> (u64, u64) {
        const INTERRUPTS_LITTLE_ENDIAN: u64 = 1 << 25;
        const INTERRUPT_LOCATION: u64 = 3 << 23;
        match self {
            Mode::LittleEndian(on) => (INTERRUPTS_LITTLE_ENDIAN, if on { INTERRUPTS_LITTLE_ENDIAN } else { 0 }),
            Mode::Relocated(on) => (INTERRUPT_LOCATION, if on { INTERRUPT_LOCATION } else { 0 }),
        }
    }
}

impl ProcessTable {
    /// The entry's bit that says radix.
    const RADIX: u64 = 1 << 63;

    fn read(flags: u64, address: u64, page_size: u64, size: u64) -> Result<ProcessTable, Status> {
        const MODIFY: u64 = 0x10;
        const REGISTER: u64 = 0x08;
        const RADIX: u64 = 0x04;
        const INVALIDATES: u64 = 0x01;
        // Hashed page tables are nothing that a nested hypervisor offers.
        if flags & !INVALIDATES != MODIFY | REGISTER | RADIX {
            return Err(Status::Parameter);
        }
        match (address, page_size, size) {
            (address, ..) if address & 0xfff != 0 || address >> 60 != 0 => Err(Status::P2),
            (_, 1.., _) => Err(Status::P3),
            (_, _, 25..) => Err(Status::P4),
            _ => {
                Ok(ProcessTable { entry: ProcessTable::RADIX | address | size, invalidates: flags & INVALIDATES != 0 })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(number: u64, arguments: [u64; 4]) -> Result<Hypercall, Status> {
        let [first, second, third, fourth] = arguments;
        Hypercall::read(number, &[first, second, third, fourth, 9, 9, 9, 9, 9])
    }

    #[test]
    fn text_lies_in_two_registers_highest_byte_first() {
        let (first, second) = (u64::from_be_bytes(*b"Hello, w"), u64::from_be_bytes(*b"orld\n\0\0\0"));
        let Ok(Hypercall::Put(text)) = read(0x58, [0x3000_0000, 13, first, second]) else {
            panic!("no text");
        };
        assert_eq!(text.as_bytes(), b"Hello, world\n");
        assert_eq!(read(0x58, [0x3000_0000, 17, 0, 0]), Err(Status::P2));
        assert_eq!(read(0x58, [1, 1, 0, 0]), Err(Status::Parameter));
        assert_eq!(read(0x54, [0x3000_0000, 0, 0, 0]), Ok(Hypercall::Get));
        assert_eq!(read(0x54, [0, 0, 0, 0]), Err(Status::Parameter));
    }

    #[test]
    fn modes_are_bits_of_one_register() {
        let mode = |arguments| match read(0x31c, arguments) {
            Ok(Hypercall::SetMode(mode)) => Ok(mode.partitioning()),
            Ok(other) => panic!("{other:?}"),
            Err(status) => Err(status),
        };
        assert_eq!(mode([1, 4, 0, 0]), Ok((0x200_0000, 0x200_0000)));
        assert_eq!(mode([0, 4, 0, 0]), Ok((0x200_0000, 0)));
        assert_eq!(mode([3, 3, 0, 0]), Ok((0x180_0000, 0x180_0000)));
        assert_eq!(mode([2, 3, 0, 0]), Err(Status::UnsupportedFlag));
        assert_eq!(mode([0, 1, 0, 0]), Err(Status::P2));
        assert_eq!(mode([1, 4, 1, 0]), Err(Status::P3));
        assert_eq!(mode([1, 4, 0, 1]), Err(Status::P4));
    }

    #[test]
    fn a_process_table_becomes_the_partitions_entry() {
        let table = ProcessTable { entry: (1 << 63) | 0x100_000c, invalidates: true };
        assert_eq!(read(0x37c, [0x1d, 0x100_0000, 0, 12]), Ok(Hypercall::Translation(table)));
        assert_eq!(read(0x37c, [0x1a, 0x100_0000, 0, 12]), Err(Status::Parameter));
        assert_eq!(read(0x37c, [0, 0, 0, 0]), Err(Status::Parameter));
        assert_eq!(read(0x37c, [0x1c, 0x100_0001, 0, 12]), Err(Status::P2));
        assert_eq!(read(0x37c, [0x1c, 1 << 60, 0, 12]), Err(Status::P2));
        assert_eq!(read(0x37c, [0x1c, 0, 1, 12]), Err(Status::P3));
        assert_eq!(read(0x37c, [0x1c, 0, 0, 25]), Err(Status::P4));
    }

    #[test]
    fn others_are_told_apart() {
        assert_eq!(read(0xf000, [0x1234, 0, 0, 0]), Ok(Hypercall::Rtas { buffer: 0x1234 }));
        assert_eq!(read(0x138, [0x8000_0000, 0, 0, 64]), Ok(Hypercall::ClearTranslations));
        assert_eq!(read(0x138, [0x8000_0000, 0, 3, 64]), Err(Status::P3));
        assert_eq!(read(0x138, [0, 0, 0, 64]), Err(Status::Parameter));
        assert_eq!(read(0x3c8, [0; 4]), Ok(Hypercall::CpuCharacteristics));
        assert_eq!(read(0x2ec, [0; 4]), Err(Status::Function));
    }
}
