//! What is done to a process: it is started, added to a container, told a signal, halted, and given a terminal of another size.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskPaused, TaskResumed, TaskStart};
use oci_spec::runtime::Process as ProcessSpec;

use super::super::arguments::is_id;
use super::super::container::{Container, Exec};
use super::super::error::TaskError;
use super::super::events::Topic;
use super::super::hooks;
use super::super::keeper;
use super::super::lifecycle::Phase;
use super::super::loopback;
use super::super::process::Process;
use super::super::pump::Io;
use super::super::stdio::StdioPaths;
use super::super::translate::translate_process;
use super::{Tasks, oci_failure};
use crate::sandbox::guest::Guest;

impl Tasks {
    /// Starts a process that was created.
    ///
    /// # Errors
    /// Why it does not run.
    pub(crate) async fn start(&self, id: &str, exec: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        if !exec.is_empty() {
            return self.start_exec(&container, exec).await;
        }
        let guest = self.guest().await?;
        let process = container.init();
        let starting = process.starting().await;
        process.life().may_start()?;
        // Docker lays the network out between the container's creation and its start.
        self.join_network(&guest).await.map_err(TaskError::Failed)?;
        // And says only then whom its processes ask for names.
        if !self.names.load(Ordering::Relaxed)
            && container.resolv_conf.as_deref().is_some_and(loopback::asks_docker)
            && !self.names.swap(true, Ordering::Relaxed)
        {
            loopback::answer_names(guest.clone());
        }
        guest.call(guest.agent().start(id, "")).await.map_err(|error| oci_failure("start", error))?;
        process.life().started();
        if let Some(shared) = &self.shared {
            shared.tell_changes(container.place(), id, container.volumes, &guest);
        }
        let event = TaskStart { container_id: id.to_owned(), pid: Tasks::pid(), ..Default::default() };
        self.events.publish(Topic::Start, &event);
        drop(starting);
        let state = hooks::state(&container, "running");
        if let Err(error) = self.host.run(&container.hooks.poststart, &state).await {
            log::warn!("{error}");
        }
        Ok(())
    }

    /// Adds a process that will join a container.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] for what is not understood, [`TaskError::AlreadyExists`],
    /// [`TaskError::FailedPrecondition`] when the container has ended.
    pub(in super::super) fn add_exec(self: &Arc<Self>, request: &ExecProcessRequest) -> Result<(), TaskError> {
        let container = self.container(&request.id)?;
        if !is_id(&request.exec_id) {
            return Err(TaskError::InvalidArgument(format!("the process id {:?} is invalid", request.exec_id)));
        }
        container.init().life().may_change("exec in")?;
        let mut spec: ProcessSpec = serde_json::from_slice(&request.spec.value)
            .map_err(|error| TaskError::InvalidArgument(format!("the process is not a valid description: {error}")))?;
        translate_process(&mut spec);
        let size = spec.console_size().map_or((0, 0), |size| (size.height() as u32, size.width() as u32));
        let json = serde_json::to_vec(&spec).map_err(TaskError::failed("the process's description"))?;
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let keeper = keeper::of(request.spec.as_ref())?;
        let process = Process::new(&request.id, &request.exec_id, stdio);
        container.add(Exec { process: process.clone(), spec: Arc::new(json), size })?;
        if let Some(keeper) = keeper {
            keeper.watch(self, &request.id, process);
        }
        let event =
            TaskExecAdded { container_id: request.id.clone(), exec_id: request.exec_id.clone(), ..Default::default() };
        self.events.publish(Topic::ExecAdded, &event);
        Ok(())
    }

    async fn start_exec(&self, container: &Container, exec_id: &str) -> Result<(), TaskError> {
        let exec = container.exec(exec_id)?;
        let guest = self.guest().await?;
        let process = &exec.process;
        let _starting = process.starting().await;
        process.life().may_start()?;
        if let Err(error) = self.run_exec(container.id(), &exec, &guest).await {
            process.over(255);
            return Err(error);
        }
        process.life().started();
        let event = TaskExecStarted {
            container_id: container.id().to_owned(),
            exec_id: exec_id.to_owned(),
            pid: Tasks::pid(),
            ..Default::default()
        };
        self.events.publish(Topic::ExecStarted, &event);
        process.follow(guest, self.events.clone(), Tasks::pid(), None);
        Ok(())
    }

    /// Makes the process in the guest, joins its streams and starts it; nothing is left in the guest if that fails.
    async fn run_exec(&self, id: &str, exec: &Exec, guest: &Guest) -> Result<(), TaskError> {
        let process = &exec.process;
        let opened = process.stdio().open(id, &self.namespace).await?;
        let wanted = self.streams(process.stdio(), exec.size);
        let agent = guest.agent();
        guest.call(agent.create_exec(id, process.exec(), exec.spec.to_vec(), wanted.clone())).await?;
        let run = async {
            let streams = guest.attach(id, process.exec(), &wanted).await?;
            process.connect(Io::connect(opened, streams));
            guest.call(agent.start(id, process.exec())).await.map_err(|error| oci_failure("exec", error))
        };
        if let Err(error) = run.await {
            let removed = guest.call(agent.delete_exec(id, process.exec())).await;
            removed.unwrap_or_else(|error| log::debug!("process {} remains in the guest: {error}", process.exec()));
            return Err(error);
        }
        Ok(())
    }

    /// Sends a signal to a process, or with `all` to all of a container.
    ///
    /// # Errors
    /// [`TaskError::NotFound`] when it has ended.
    pub(in super::super) async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if !all {
            process.life().may_signal()?;
        }
        if signal == libc::SIGKILL as u32 {
            let first = exec.is_empty();
            container.processes().iter().filter(|each| first || each.exec() == exec).for_each(|each| each.relieve());
        }
        let guest = self.guest().await?;
        match guest.call(guest.agent().signal(id, exec, signal, all)).await {
            Ok(()) => Ok(()),
            Err(error) => process.explain_signal(error).await,
        }
    }

    /// Has all processes of a container stand still.
    ///
    /// # Errors
    /// [`TaskError::FailedPrecondition`] if it does not run.
    pub(in super::super) async fn pause(&self, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        container.init().life().may_pause()?;
        let guest = self.guest().await?;
        guest.call(guest.agent().pause(id)).await?;
        container.init().life().paused();
        let event = TaskPaused { container_id: id.to_owned(), ..Default::default() };
        self.events.publish(Topic::Paused, &event);
        Ok(())
    }

    /// Has them go on.
    ///
    /// # Errors
    /// [`TaskError::FailedPrecondition`] if it does not stand still.
    pub(in super::super) async fn resume(&self, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        container.init().life().may_resume()?;
        let guest = self.guest().await?;
        guest.call(guest.agent().resume(id)).await?;
        container.init().life().resumed();
        let event = TaskResumed { container_id: id.to_owned(), ..Default::default() };
        self.events.publish(Topic::Resumed, &event);
        Ok(())
    }

    /// Gives a process's terminal another size, in characters.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] if it has none.
    pub(in super::super) async fn resize(
        &self,
        id: &str,
        exec: &str,
        rows: u32,
        columns: u32,
    ) -> Result<(), TaskError> {
        let process = self.process(id, exec)?;
        process.life().may_change("resize the terminal of")?;
        let limit = |value: u32| value.min(u16::MAX.into()) as u16;
        if !exec.is_empty() && process.phase() == Phase::Created {
            // The guest does not know it yet; clients say it again after the start.
            return Ok(());
        }
        let guest = self.guest().await?;
        Ok(guest.call(guest.agent().resize(id, exec, limit(rows), limit(columns))).await?)
    }
}
