"""Who revoked a key: a start takes back its own revocations, and no others."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("revoked_by", sa.String(32), nullable=True))


def downgrade() -> None:
    op.drop_column("keys", "revoked_by")
