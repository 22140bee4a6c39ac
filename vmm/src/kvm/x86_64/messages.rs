//! Messages (MSI-X) made of events: a table of routes, which KVM is given anew whenever an entry changes.
//!
//! The interrupt controllers' lines are in it as well, as they are without a table: KVM takes all or nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use tatami_arch::x86_64::layout;
use tatami_devices::virtio::{Message, MessageRoutes};

/// Lines that one of the two PICs has.
const PIC_LINES: u32 = 8;

/// Numbers for events that send messages, in the order in which they are asked for.
pub(crate) struct Messages {
    table: Arc<Table>,
    next: u32,
}

struct Table {
    vm: Arc<VmFd>,
    entries: Mutex<Vec<kvm_irq_routing_entry>>,
    /// The guest has been told on once.
    told: AtomicBool,
}

/// One function's part of the table.
struct Routes {
    table: Arc<Table>,
    first: u32,
}

impl Messages {
    /// None but lines yet.
    pub(in crate::kvm) fn new(vm: &Arc<VmFd>) -> Option<Messages> {
        let table = Table { vm: Arc::clone(vm), entries: Mutex::new(lines()), told: AtomicBool::new(false) };
        Some(Messages { table: Arc::new(table), next: layout::LAST_IRQ + 1 })
    }

    /// Sets `count` numbers aside: the first, and how the messages behind them are set.
    pub(crate) fn reserve(&mut self, count: usize) -> (u32, Box<dyn MessageRoutes>) {
        let first = self.next;
        self.next += count as u32;
        (first, Box::new(Routes { table: Arc::clone(&self.table), first }))
    }
}

impl MessageRoutes for Routes {
    fn route(&self, vector: u16, message: Message) {
        let gsi = self.first + u32::from(vector);
        let msi = kvm_irq_routing_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
        let entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u, ..Default::default() };
        let mut entries = self.table.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let before = entries.clone();
        match entries.iter_mut().find(|entry| entry.gsi == gsi) {
            Some(place) => *place = entry,
            None => entries.push(entry),
        }
        let set = KvmIrqRouting::from_entries(&entries).map(|routing| self.table.vm.set_gsi_routing(&routing));
        if !matches!(set, Ok(Ok(()))) {
            // One that cannot be must not stand in the way of others.
            *entries = before;
            if !self.table.told.swap(true, Ordering::Relaxed) {
                log::warn!("the guest wants an interrupt that cannot be: {message:x?}");
            }
        }
    }
}

/// What KVM has by itself: each line to the I/O APIC, the first of them to the PICs as well.
fn lines() -> Vec<kvm_irq_routing_entry> {
    let line = |gsi: u32, irqchip: u32, pin: u32| {
        let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } };
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, u, ..Default::default() }
    };
    let pic = |gsi: u32| match gsi / PIC_LINES {
        0 => Some(line(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
        1 => Some(line(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_LINES)),
        _ => None,
    };
    (0..=layout::LAST_IRQ).flat_map(|gsi| [Some(line(gsi, KVM_IRQCHIP_IOAPIC, gsi)), pic(gsi)]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_where_they_are() {
        let lines = lines();
        assert_eq!(lines.len(), 24 + 16);
        assert_eq!(lines.iter().filter(|line| line.gsi == 4).count(), 2, "the serial line has both");
        assert_eq!(lines.iter().filter(|line| line.gsi == 23).count(), 1);
    }
}
