"""What the tabs of the page share: the service, its conversations, jobs and tuning room, and uploads under way."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.auth import user_of
from apps.processes import Job, Jobs
from apps.service import Service
from apps.store import ANYONE, Store
from apps.talks import Talks
from apps.views import Upload
from apps.watching import Watched
from apps.workshop import Workshop


class Desk:
    """One service and what stands on disk beside its index. Raises StoreError when that cannot be opened."""

    def __init__(self, service: Service, *, store: Store | None = None, jobs: Jobs | None = None) -> None:
        folder = service.library.folder
        self.service = service
        self.store = store or Store.beside(folder)
        self.talks = Talks(service, self.store)
        self.jobs = jobs or Jobs.beside(folder)
        self.workshop = Workshop(service, self.talks.feedback)
        self._uploads: dict[str, Watched[tuple[Upload, ...]]] = {}

    @staticmethod
    def user(request: Any) -> str:
        """Who sits behind a request."""
        return user_of(request.headers)

    def upload(self, files: Sequence[tuple[Path, str]], user: str = ANYONE) -> Watched[tuple[Upload, ...]]:
        """Index uploaded files in a thread of the server: it goes on when the tab is closed; the copies given are
        removed at the end."""
        work: Watched[tuple[Upload, ...]] = Watched(tuple(Upload(name) for _, name in files))

        def run() -> None:
            items = work.state
            try:
                for items in self.service.upload(files):
                    work.publish(items)
            finally:
                for path, _ in files:  # Gradio's copies could be read by whoever guesses their address
                    path.unlink(missing_ok=True)
                work.publish(items, over=True)

        self._uploads[user] = work
        threading.Thread(target=run, name="ragtune-uploads", daemon=True).start()
        return work

    def uploading(self, user: str = ANYONE) -> Watched[tuple[Upload, ...]] | None:
        """The last upload of a user in this server, running or over."""
        return self._uploads.get(user)

    def delete(self, sources: Sequence[str]) -> str:
        """Delete documents from the index, and their text from stored conversations; says what was done."""
        said = self.service.library.delete(sources)
        for source in sources:
            self.store.forget_source(source)
        return said

    def job(self, job: str, kinds: Sequence[str]) -> Job | None:
        """The job of this id, else the newest of these kinds."""
        found = [j for j in self.jobs.all() if j.kind in kinds]
        return next((j for j in found if j.id == job), found[0] if found else None)
