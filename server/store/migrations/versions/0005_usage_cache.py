"""Whether a request was answered by the response cache."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("usage", sa.Column("cache", sa.String(8), nullable=True))


def downgrade() -> None:
    op.drop_column("usage", "cache")
