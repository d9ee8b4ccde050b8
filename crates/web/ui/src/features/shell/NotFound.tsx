import { Link } from "@tanstack/react-router";
import { Empty, Page } from "../../parts/Show";

export function NotFound() {
  return (
    <Page title="No such page">
      <Empty title="There is nothing at this address">
        <Link to="/" className="text-accent underline">
          Go to the start
        </Link>
      </Empty>
    </Page>
  );
}
