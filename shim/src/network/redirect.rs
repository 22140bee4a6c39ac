//! Two interfaces joined by the kernel's traffic control: every frame that one receives, the other sends (tc-mirred(8)).
//!
//! Both keep their addresses, but receive nothing any more: what used to be theirs is the guest's.

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

/// Where filters for what an interface receives are attached.
const INGRESS: u32 = 0xffff_0000;
/// The priority of our filters, by which they are known again.
const PRIORITY: u16 = 0x7a7a;
/// Frames of every protocol, in network byte order.
const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Joins the interfaces of these numbers.
///
/// # Errors
/// The kernel's.
pub async fn join(netlink: &Handle, one: u32, other: u32) -> Result<(), rtnetlink::Error> {
    for (from, to) in [(one, other), (other, one)] {
        netlink.qdisc().replace(from as i32).ingress().execute().await?;
        let filter = netlink.traffic_filter(from as i32).add().parent(INGRESS).priority(PRIORITY).protocol(ALL);
        filter.redirect(to)?.execute().await?;
    }
    Ok(())
}

/// Takes back what [`join`] did to the interface of this number, if it did anything.
///
/// # Errors
/// The kernel's.
pub async fn part(netlink: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    let filters = netlink.traffic_filter(index as i32).get().ingress().execute();
    let filters: Vec<TcMessage> = filters.try_collect().await?;
    // The upper half is the priority, the lower half the protocol.
    let ours = |filter: &TcMessage| filter.header.info >> 16 == u32::from(PRIORITY);
    if !filters.iter().any(ours) {
        return Ok(());
    }
    let mut removal = netlink.qdisc().del(index as i32);
    removal.message_mut().header.parent = TcHandle::INGRESS;
    removal.execute().await
}
