"""Batches, and the results of their lines while they run."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

_TIME = sa.DateTime(timezone=True)
_TIMES = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("endpoint", sa.String(128), nullable=False),
        sa.Column("input_file_id", sa.String(48), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=True),
        sa.Column("output_seconds", sa.Integer(), nullable=True),
        sa.Column("errors", sa.JSON(), nullable=True),
        sa.Column("output_file_id", sa.String(48), nullable=True),
        sa.Column("error_file_id", sa.String(48), nullable=True),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("total", "completed", "failed")),
        *(
            sa.Column(f"{kind}_tokens", sa.BigInteger(), nullable=False)
            for kind in ("input", "cached", "output", "reasoning")
        ),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        *(sa.Column(name, _TIME, nullable=True) for name in _TIMES),
        sa.Column("owner", sa.String(32), nullable=True),
        sa.Column("lease_until", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )
    op.create_index("ix_batches_account_id_id", "batches", ["account_id", "id"])
    op.create_index("ix_batches_status_lease_until", "batches", ["status", "lease_until"])
    op.create_index("ix_batches_input_file_id", "batches", ["input_file_id"])
    op.create_table(
        "batch_results",
        sa.Column("batch_id", sa.String(48), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("is_error", sa.Boolean(), nullable=False),
        sa.Column("output", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "line", name="pk_batch_results"),
    )


def downgrade() -> None:
    op.drop_table("batch_results")
    op.drop_table("batches")
