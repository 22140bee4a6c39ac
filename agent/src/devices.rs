//! The specification's rules about devices, as the eBPF program that the kernel asks about every access from the group.
//!
//! Pure: a program is numbers; `bpf` hands it to the kernel. The last rule that speaks of a way of access decides about it.

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::nodes::Numbers;

/// `BPF_DEVCG_ACC_*` of the kernel's bpf.h.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ANY_ACCESS: i32 = MKNOD | READ | WRITE;
/// `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// One rule; what is none is any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// What every container may use, whatever its rules: making nodes, and the devices that the specification promises.
const ALWAYS: &[(Option<i32>, Option<i32>, i32)] = &[
    (None, None, MKNOD),
    (Some(1), Some(3), ANY_ACCESS),
    (Some(1), Some(5), ANY_ACCESS),
    (Some(1), Some(7), ANY_ACCESS),
    (Some(1), Some(8), ANY_ACCESS),
    (Some(1), Some(9), ANY_ACCESS),
    (Some(5), Some(0), ANY_ACCESS),
    (Some(5), Some(2), ANY_ACCESS),
    (Some(136), None, ANY_ACCESS),
];

/// The rules of `list`, and after them those that always hold. None for an empty list: then nothing is governed.
///
/// # Errors
/// Names the rule that makes no sense.
pub(crate) fn rules(list: &[LinuxDeviceCgroup], numbers: &Numbers) -> Result<Vec<Rule>, String> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let mut rules = list.iter().map(|one| rule(one, numbers)).collect::<Result<Vec<_>, _>>()?;
    let always = |&(major, minor, access): &_| Rule { allow: true, kind: Some(CHARACTER), major, minor, access };
    rules.extend(ALWAYS.iter().map(always));
    rules.push(Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD });
    Ok(rules)
}

fn rule(rule: &LinuxDeviceCgroup, numbers: &Numbers) -> Result<Rule, String> {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::P) => return Err("a pipe is no device that rules are about".to_owned()),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => i32::try_from(number)
            .ok()
            .filter(|number| *number >= 0)
            .map(Some)
            .ok_or_else(|| format!("{number} is no device number")),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(format!("{letter:?} is no way of access: r, w or m")),
        };
    }
    let (major, minor) = match (kind, rule.major(), rule.minor()) {
        (Some(BLOCK), Some(major), Some(minor)) => {
            let (major, minor) = numbers.here((major, minor));
            (Some(major), Some(minor))
        }
        (_, major, minor) => (major, minor),
    };
    Ok(Rule { allow: rule.allow(), kind, major: number(major)?, minor: number(minor)?, access })
}

/// An instruction as the kernel takes it: operation, registers, offset and operand in 64 bits.
pub(crate) type Instruction = u64;

/// Registers: the result, the argument, then our own.
const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Operations (the kernel's instruction-set.rst): class, source and code together.
const LOAD_32: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The program for `rules`. Access that no rule speaks of is denied.
pub(crate) fn program(rules: &[Rule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx: kind in the low half and access in the high half of a word, major, minor.
    let mut program = vec![
        instruction(LOAD_32, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_32, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_32, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let conditions: Vec<(u8, i32)> = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)]
            .into_iter()
            .filter_map(|(register, wanted)| Some((register, wanted?)))
            .collect();
        let verdict = verdict(rule);
        for (index, (register, wanted)) in conditions.iter().enumerate() {
            let rest = conditions.len() - index - 1 + verdict.len();
            program.push(instruction(JUMP_UNLESS_EQUAL, *register, 0, rest as i16, *wanted));
        }
        program.extend(verdict);
        if !rule.allow && rule.access == ANY_ACCESS && conditions.is_empty() {
            // Nothing before it is ever asked, and the kernel takes no code that cannot be reached.
            return program;
        }
    }
    program.extend(result(false));
    program
}

/// What happens when a rule's conditions hold: a result, or on to the rule before it.
fn verdict(rule: &Rule) -> Vec<Instruction> {
    let mut verdict = match rule {
        // What is allowed here needs no other rule; when nothing is left to ask for, that is the answer.
        Rule { allow: true, access, .. } => {
            vec![instruction(AND, ACCESS, 0, 0, !access), instruction(JUMP_UNLESS_EQUAL, ACCESS, 0, 2, 0)]
        }
        Rule { access: ANY_ACCESS, .. } => Vec::new(),
        Rule { access, .. } => vec![
            instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0),
            instruction(AND, SCRATCH, 0, 0, *access),
            instruction(JUMP_IF_EQUAL, SCRATCH, 0, 2, 0),
        ],
    };
    verdict.extend(result(rule.allow));
    verdict
}

fn result(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE, R0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

fn instruction(operation: u8, target: u8, source: u8, offset: i16, operand: i32) -> Instruction {
    let registers = target | source << 4;
    let low = u16::from_le_bytes([operation, registers]);
    u64::from(low) | u64::from(offset as u16) << 16 | u64::from(operand as u32) << 32
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], kind: i32, major: u32, minor: u32, access: i32) -> bool {
        let context = [(access as u32) << 16 | kind as u32, major, minor];
        let (mut registers, mut next) = ([0_u64; 11], 0);
        loop {
            let code = program[next];
            let (operation, target, source) = (code as u8, (code >> 8 & 15) as usize, (code >> 12 & 15) as usize);
            let (offset, operand) = ((code >> 16) as i16, (code >> 32) as i32 as i64 as u64);
            next += 1;
            let mut jump = |holds: bool| next += if holds { offset as usize } else { 0 };
            match operation {
                LOAD_32 => registers[target] = context[offset as usize / 4].into(),
                MOVE => registers[target] = operand,
                MOVE_REGISTER => registers[target] = registers[source],
                AND => registers[target] &= operand,
                SHIFT_RIGHT => registers[target] >>= operand,
                JUMP_IF_EQUAL => jump(registers[target] == operand),
                JUMP_UNLESS_EQUAL => jump(registers[target] != operand),
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn allowed(list: Value, kind: i32, major: u32, minor: u32, access: i32) -> bool {
        let list: Vec<LinuxDeviceCgroup> = serde_json::from_value(list).unwrap();
        run(&program(&rules(&list, &Numbers::of((7, 0), (254, 1))).unwrap()), kind, major, minor, access)
    }

    #[test]
    fn the_last_rule_decides_about_each_way_of_access() {
        let list = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" },
            { "allow": true, "type": "b", "major": 8, "minor": -1, "access": "r" },
            { "allow": true, "type": "b", "major": 8, "access": "w" },
            { "allow": false, "type": "b", "major": 8, "minor": 1, "access": "w" },
        ]);
        let ask = |kind, major, minor, access| allowed(list.clone(), kind, major, minor, access);
        assert!(ask(CHARACTER, 10, 229, READ | WRITE));
        assert!(!ask(CHARACTER, 10, 230, READ));
        assert!(!ask(BLOCK, 10, 229, READ));
        // Allowed by two rules together.
        assert!(ask(BLOCK, 8, 0, READ | WRITE));
        assert!(ask(BLOCK, 8, 1, READ));
        assert!(!ask(BLOCK, 8, 1, READ | WRITE));
        // Always.
        assert!(ask(CHARACTER, 1, 3, READ | WRITE) && ask(CHARACTER, 136, 5, READ | WRITE) && ask(BLOCK, 9, 9, MKNOD));
        assert!(!ask(CHARACTER, 1, 1, READ) && !ask(BLOCK, 9, 9, MKNOD | READ));
    }

    #[test]
    fn rules_about_the_hosts_block_devices_are_about_the_guests() {
        let list = json!([{ "allow": true, "type": "b", "major": 7, "minor": 0, "access": "r" }]);
        assert!(allowed(list.clone(), BLOCK, 254, 1, READ) && !allowed(list.clone(), BLOCK, 254, 1, WRITE));
        assert!(!allowed(list, BLOCK, 7, 0, READ));
    }

    #[test]
    fn a_privileged_container_may_everything() {
        let list = json!([{ "allow": false, "access": "rwm" }, { "allow": true, "access": "rwm", "type": "a" }]);
        assert!(allowed(list, CHARACTER, 1, 1, ANY_ACCESS));
        assert!(rules(&[], &Numbers::default()).unwrap().is_empty());
    }

    #[test]
    fn rules_without_sense_are_refused() {
        for bad in [
            json!({ "allow": true, "access": "x" }),
            json!({ "allow": true, "major": -7 }),
            json!({ "allow": true, "type": "p" }),
        ] {
            let rule: LinuxDeviceCgroup = serde_json::from_value(bad.clone()).unwrap();
            assert!(rules(&[rule], &Numbers::default()).is_err(), "{bad}");
        }
    }
}
