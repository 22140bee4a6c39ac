//! What an interface receives, given to another by the kernel's traffic control (tc-mirred(8)).
//!
//! The interface keeps its addresses, but its own kernel receives nothing any more: what used to be its is the guest's.

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcFilterU32Option,
    TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

/// Where filters for what an interface receives are attached.
const INGRESS: u32 = 0xffff_0000;
/// The priority of our filters, by which they are known again.
const PRIORITY: u16 = 0x7a7a;
/// Frames of every protocol, in network byte order.
const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Joins the interfaces of these numbers: every frame that one receives, the other sends.
///
/// # Errors
/// The kernel's.
pub async fn join(netlink: &Handle, one: u32, other: u32) -> Result<(), rtnetlink::Error> {
    give(netlink, one, other, TcMirrorActionType::EgressRedir).await?;
    give(netlink, other, one, TcMirrorActionType::EgressRedir).await
}

/// Every frame that the interface `from` receives, the interface `to` receives in its place.
///
/// # Errors
/// The kernel's.
pub async fn receive_in_place(netlink: &Handle, from: u32, to: u32) -> Result<(), rtnetlink::Error> {
    give(netlink, from, to, TcMirrorActionType::IngressRedir).await
}

async fn give(netlink: &Handle, from: u32, to: u32, way: TcMirrorActionType) -> Result<(), rtnetlink::Error> {
    netlink.qdisc().replace(from as i32).ingress().execute().await?;
    let filter = netlink.traffic_filter(from as i32).add().parent(INGRESS).priority(PRIORITY).protocol(ALL);
    filter.u32(&every_frame(to, way))?.execute().await
}

/// A filter that takes every frame: one key that compares nothing (tc-u32(8)).
fn every_frame(to: u32, way: TcMirrorActionType) -> [TcFilterU32Option; 2] {
    let mut selector = TcU32Selector::default();
    (selector.flags, selector.nkeys, selector.keys) = (TcU32SelectorFlags::Terminal, 1, vec![TcU32Key::default()]);
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    (mirror.eaction, mirror.ifindex) = (way, to);
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    [TcFilterU32Option::Selector(selector), TcFilterU32Option::Action(vec![action])]
}

/// Takes back what [`join`] or [`receive_in_place`] did to the interface of this number, if they did anything.
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
