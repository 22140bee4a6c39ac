//! RTAS, the platform's run-time abstraction services (Linux on Power Architecture Reference, LoPAR, chapter 7): the code through
//! which a guest calls them, the services' names and tokens, and calls as data.
//!
//! A call is a buffer of big-endian words in guest memory: token, number of arguments, number of results, the arguments and
//! then room for the results, of which the first is the status. Knows nobody who carries calls out.
//!
//! There is no `display-character` on purpose: Linux tells its progress through it, which is an exit for each character.

use super::layout;

/// What RTAS's entry point is: five instructions that hand the buffer's address on to the hypervisor, as hypercall `0xf000`.
/// Linux enters it in 32-bit big-endian mode, whatever its own byte order is.
pub const CODE: [u32; 5] = [
    0x7c64_1b78, // mr   r4, r3
    0x3c60_0000, // lis  r3, 0
    0x6063_f000, // ori  r3, r3, 0xf000
    0x4400_0022, // sc   1
    0x4e80_0020, // blr
];

/// How many bytes a call's buffer has: three words and 16 for arguments and results together, as Linux has them.
pub const BUFFER_SIZE: usize = 4 * (HEADER_WORDS + WORDS);

const HEADER_WORDS: usize = 3;
const WORDS: usize = 16;

/// A service that the guest may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Tells the time.
    GetTimeOfDay,
    /// Starts a stopped processor.
    StartCpu,
    /// Tells whether a processor is stopped.
    QueryCpuStoppedState,
    /// Stops the calling processor.
    StopSelf,
    /// Switches the machine off.
    PowerOff,
    /// Resets it.
    SystemReboot,
    /// Reads a PCI function's configuration.
    ReadPciConfig,
    /// Writes it.
    WritePciConfig,
    /// Directs an interrupt: the interrupt controller's, as are those that follow.
    SetXive,
    /// Tells where an interrupt goes.
    GetXive,
    /// Masks an interrupt.
    IntOff,
    /// Unmasks it.
    IntOn,
}

/// All services, in the order of their tokens.
pub const SERVICES: [(Service, &str); 12] = [
    (Service::GetTimeOfDay, "get-time-of-day"),
    (Service::StartCpu, "start-cpu"),
    (Service::QueryCpuStoppedState, "query-cpu-stopped-state"),
    (Service::StopSelf, "stop-self"),
    (Service::PowerOff, "power-off"),
    (Service::SystemReboot, "system-reboot"),
    (Service::ReadPciConfig, "ibm,read-pci-config"),
    (Service::WritePciConfig, "ibm,write-pci-config"),
    (Service::SetXive, "ibm,set-xive"),
    (Service::GetXive, "ibm,get-xive"),
    (Service::IntOff, "ibm,int-off"),
    (Service::IntOn, "ibm,int-on"),
];

/// The first service's token. Any number will do but those that Linux takes for "unknown" or "none".
const FIRST_TOKEN: u32 = 0x2000;

impl Service {
    /// The number that means it in calls.
    #[must_use]
    pub fn token(self) -> u32 {
        FIRST_TOKEN + self as u32
    }

    /// Whether it is part of the interrupt controller, and so answered where that is.
    #[must_use]
    pub fn is_interrupt_controllers(self) -> bool {
        matches!(self, Service::SetXive | Service::GetXive | Service::IntOff | Service::IntOn)
    }
}

/// A call's first result (LoPAR, section 7.2.8, "Return Codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// Done.
    Success = 0,
    /// It could not be done.
    HardwareError = -1,
    /// An argument makes no sense, or there is no such service.
    ParameterError = -3,
}

/// A place in the configuration of a PCI function (LoPAR, section 7.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAddress {
    /// Bus.
    pub bus: u8,
    /// Device on the bus, below 32.
    pub device: u8,
    /// Function of the device, below 8.
    pub function: u8,
    /// First register, below 4096, a multiple of `size`.
    pub register: u16,
    /// 1, 2 or 4 bytes.
    pub size: u8,
}

/// What a guest asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The time of day, in UTC, as [`time_of_day`] has it.
    TimeOfDay,
    /// Starts `cpu` at `address`, with `argument` in r3.
    StartCpu {
        /// Its number.
        cpu: u32,
        /// Its first instruction.
        address: u32,
        /// What it finds in r3.
        argument: u32,
    },
    /// One result: [`CPU_STOPPED`] or [`CPU_RUNNING`].
    CpuState {
        /// Its number.
        cpu: u32,
    },
    /// Stops the caller; there is no answer.
    StopSelf,
    /// Ends the machine.
    PowerOff,
    /// Ends it so that it begins anew.
    Reboot,
    /// One result: what is there.
    ReadConfig(ConfigAddress),
    /// Puts a value there.
    WriteConfig(ConfigAddress, u32),
}

/// A processor that waits for `start-cpu`.
pub const CPU_STOPPED: u32 = 0;
/// A processor that does not.
pub const CPU_RUNNING: u32 = 2;

/// A call as it lies in its buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    token: u32,
    arguments: Vec<u32>,
    results: usize,
}

impl Call {
    /// Reads a call from its buffer, or as much of it as there is memory; `None` if it has more arguments and results than there is room for.
    #[must_use]
    pub fn read(buffer: &[u8]) -> Option<Call> {
        let words: Vec<u32> =
            buffer.as_chunks().0.iter().take(HEADER_WORDS + WORDS).map(|word| u32::from_be_bytes(*word)).collect();
        let (&[token, arguments, results], words) = words.split_first_chunk()?;
        let (arguments, results) = (usize::try_from(arguments).ok()?, usize::try_from(results).ok()?);
        if arguments.checked_add(results)? > words.len() {
            return None;
        }
        Some(Call { token, arguments: words[..arguments].to_vec(), results })
    }

    /// What is asked for.
    ///
    /// # Errors
    /// The status to answer with, where it is nothing that could be carried out.
    pub fn request(&self) -> Result<Request, Status> {
        let service = SERVICES.iter().map(|(service, _)| *service).find(|service| service.token() == self.token);
        match (service.ok_or(Status::ParameterError)?, self.arguments.as_slice()) {
            (Service::GetTimeOfDay, []) => Ok(Request::TimeOfDay),
            (Service::StartCpu, &[cpu, address, argument]) => Ok(Request::StartCpu { cpu, address, argument }),
            (Service::QueryCpuStoppedState, &[cpu]) => Ok(Request::CpuState { cpu }),
            (Service::StopSelf, []) => Ok(Request::StopSelf),
            // The arguments say what may switch the machine on again: nothing here.
            (Service::PowerOff, &[_, _]) => Ok(Request::PowerOff),
            (Service::SystemReboot, []) => Ok(Request::Reboot),
            (Service::ReadPciConfig, &[address, high, low, size]) => {
                Ok(Request::ReadConfig(config_address(address, [high, low], size)?))
            }
            (Service::WritePciConfig, &[address, high, low, size, value]) => {
                Ok(Request::WriteConfig(config_address(address, [high, low], size)?, value))
            }
            _ => Err(Status::ParameterError),
        }
    }

    /// Where in the buffer the answer goes, and its bytes: as many results as the caller has room for, zeros where there are fewer.
    #[must_use]
    pub fn answer(&self, status: Status, results: &[u32]) -> (usize, Vec<u8>) {
        let words = [status as i32 as u32].into_iter().chain(results.iter().copied()).chain(std::iter::repeat(0));
        let bytes = words.take(self.results).flat_map(u32::to_be_bytes).collect();
        (4 * (HEADER_WORDS + self.arguments.len()), bytes)
    }
}

fn config_address(address: u32, unit: [u32; 2], size: u32) -> Result<ConfigAddress, Status> {
    let unit = (u64::from(unit[0]) << 32) | u64::from(unit[1]);
    let [high, bus, function, low] = address.to_be_bytes();
    let register = (u16::from(high >> 4) << 8) | u16::from(low);
    if unit != layout::BRIDGE_UNIT || !matches!(size, 1 | 2 | 4) || !u32::from(register).is_multiple_of(size) {
        return Err(Status::ParameterError);
    }
    Ok(ConfigAddress { bus, device: function >> 3, function: function & 7, register, size: size as u8 })
}

/// The results of `get-time-of-day` for a moment since 1970: year, month, day, hour, minute, second and nanosecond.
#[must_use]
pub fn time_of_day(since_1970: std::time::Duration) -> [u32; 7] {
    const DAY: u64 = 86_400;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // Days before a year that begins in March, so that a leap day is the last of one.
    const DAYS_BEFORE_1970: u64 = 719_468;
    let (days, seconds) = (since_1970.as_secs() / DAY + DAYS_BEFORE_1970, since_1970.as_secs() % DAY);
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 30.6 days on average, five after another the same pattern.
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let date = [400 * era + year + next, month, day_of_month, seconds / 3600, seconds / 60 % 60, seconds % 60];
    let [year, month, day, hour, minute, second] = date.map(|part| u32::try_from(part).unwrap_or(u32::MAX));
    [year, month, day, hour, minute, second, since_1970.subsec_nanos()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn buffer(words: &[u32]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.resize(BUFFER_SIZE, 0);
        bytes
    }

    fn request(service: Service, arguments: &[u32], results: u32) -> Result<Request, Status> {
        let header = [service.token(), arguments.len() as u32, results];
        Call::read(&buffer(&[&header, arguments].concat())).unwrap().request()
    }

    #[test]
    fn tokens_follow_the_table() {
        for (index, (service, _)) in SERVICES.iter().enumerate() {
            assert_eq!(service.token(), FIRST_TOKEN + index as u32);
        }
        assert_eq!(SERVICES.iter().filter(|(service, _)| service.is_interrupt_controllers()).count(), 4);
    }

    #[test]
    fn a_call_is_read_and_answered_in_big_endian() {
        let token = Service::QueryCpuStoppedState.token();
        let call = Call::read(&buffer(&[token, 1, 2, 5])).unwrap();
        assert_eq!(call.request(), Ok(Request::CpuState { cpu: 5 }));
        assert_eq!(call.answer(Status::Success, &[CPU_RUNNING]), (16, vec![0, 0, 0, 0, 0, 0, 0, 2]));
        assert_eq!(call.answer(Status::ParameterError, &[]), (16, vec![0xff, 0xff, 0xff, 0xfd, 0, 0, 0, 0]));
        let silent = Call::read(&buffer(&[token, 1, 0, 5])).unwrap();
        assert_eq!(silent.answer(Status::Success, &[1]), (16, vec![]));
    }

    #[test]
    fn every_service_is_understood() {
        assert_eq!(request(Service::GetTimeOfDay, &[], 8), Ok(Request::TimeOfDay));
        let started = Request::StartCpu { cpu: 3, address: 0x60, argument: 3 };
        assert_eq!(request(Service::StartCpu, &[3, 0x60, 3], 1), Ok(started));
        assert_eq!(request(Service::StopSelf, &[], 1), Ok(Request::StopSelf));
        assert_eq!(request(Service::PowerOff, &[u32::MAX, u32::MAX], 1), Ok(Request::PowerOff));
        assert_eq!(request(Service::SystemReboot, &[], 1), Ok(Request::Reboot));
        let address = ConfigAddress { bus: 1, device: 2, function: 3, register: 0x104, size: 4 };
        let unit = [0x800_0000, 0x2000_0000];
        assert_eq!(
            request(Service::ReadPciConfig, &[0x1001_1304, unit[0], unit[1], 4], 2),
            Ok(Request::ReadConfig(address))
        );
        assert_eq!(
            request(Service::WritePciConfig, &[0x1001_1304, unit[0], unit[1], 4, 7], 1),
            Ok(Request::WriteConfig(address, 7))
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let unit = [0x800_0000, 0x2000_0000];
        for (service, arguments) in [
            (Service::GetTimeOfDay, vec![1]),
            (Service::StartCpu, vec![1, 2]),
            (Service::SetXive, vec![1, 2, 3]),
            (Service::ReadPciConfig, vec![0, unit[0], unit[1], 3]),
            (Service::ReadPciConfig, vec![0, unit[0], unit[1], 0]),
            (Service::ReadPciConfig, vec![2, unit[0], unit[1], 4]),
            (Service::ReadPciConfig, vec![0, 0, 0, 4]),
        ] {
            assert_eq!(request(service, &arguments, 1), Err(Status::ParameterError), "{service:?} {arguments:x?}");
        }
        assert_eq!(Call::read(&buffer(&[1, 0, 1])).unwrap().request(), Err(Status::ParameterError));
        // More than there is room for, in the buffer or in memory.
        for words in [[1, 16, 1], [1, 0, 17], [1, u32::MAX, u32::MAX]] {
            assert_eq!(Call::read(&buffer(&words)), None);
        }
        assert_eq!(Call::read(&buffer(&[1, 2, 1])[..20]), None);
        assert_eq!(Call::read(&[0; 11]), None);
    }

    #[test]
    fn whatever_a_call_is_its_answer_stays_in_the_buffer() {
        for token in 0..=SERVICES.len() as u32 {
            for (arguments, results) in (0..=17).flat_map(|arguments| (0..=17).map(move |results| (arguments, results)))
            {
                let bytes = buffer(&[FIRST_TOKEN + token, arguments, results, u32::MAX, 0x800_0000, 0x2000_0000, 4]);
                let Some(call) = Call::read(&bytes) else { continue };
                let status = call.request().err().unwrap_or(Status::Success);
                let (offset, answer) = call.answer(status, &[1; 20]);
                assert!(offset + answer.len() <= BUFFER_SIZE, "{call:?}");
            }
        }
    }

    #[test]
    fn the_time_is_told_as_calendars_do() {
        let at = |seconds| time_of_day(Duration::new(seconds, 5));
        assert_eq!(at(0), [1970, 1, 1, 0, 0, 0, 5]);
        assert_eq!(at(951_782_400), [2000, 2, 29, 0, 0, 0, 5]);
        assert_eq!(at(1_709_251_199), [2024, 2, 29, 23, 59, 59, 5]);
        assert_eq!(at(1_709_251_200), [2024, 3, 1, 0, 0, 0, 5]);
        assert_eq!(at(4_102_444_799), [2099, 12, 31, 23, 59, 59, 5]);
    }
}
