import { useQueryClient } from "@tanstack/react-query";
import { Link, Outlet, useNavigate } from "@tanstack/react-router";
import { Home, Inbox, ListChecks, LogOut, Moon, Search, Sun, Wifi, WifiOff } from "lucide-react";
import { useEffect, useRef, useState } from "react";
import { get, key, onSignedOut } from "../../api/client";
import { follow, type Link as Wire } from "../../api/live";
import { Palette } from "./Palette";
import { SignIn } from "./SignIn";
import { theme, turnTheme } from "./theme";

/** Lists are read again at most so often while events pour in; single Tasks follow their own feed. */
const REFRESH_MS = 100;

export const PAGES = [
  { to: "/", label: "Home", Icon: Home },
  { to: "/tasks", label: "Tasks", Icon: ListChecks },
  { to: "/queue", label: "Queue", Icon: Inbox },
] as const;

export function Shell() {
  const [signedIn, setSignedIn] = useState(() => key.get() !== null);
  const queries = useQueryClient();
  useEffect(() => onSignedOut(() => setSignedIn(false)), []);
  if (!signedIn) {
    return (
      <SignIn
        done={() => {
          queries.clear();
          setSignedIn(true);
        }}
      />
    );
  }
  return <Frame signOut={() => { key.clear(); queries.clear(); setSignedIn(false); }} />;
}

function Frame({ signOut }: { signOut: () => void }) {
  const link = useFeed();
  const [look, setLook] = useState(theme);
  const [palette, setPalette] = useState(false);
  const navigate = useNavigate();
  const main = useRef<HTMLElement>(null);
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
        event.preventDefault();
        setPalette(true);
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  const Theme = look === "dark" ? Sun : Moon;
  return (
    <div className="flex min-h-full flex-col md:flex-row">
      <a href="#main" className="sr-only focus:not-sr-only" onClick={(event) => { event.preventDefault(); main.current?.focus(); }}>
        Skip to the content
      </a>
      <header className="sticky top-0 z-10 flex items-center gap-1 border-b border-line bg-panel px-3 py-2 md:h-dvh md:w-52 md:flex-col md:items-stretch md:border-r md:border-b-0 md:p-3">
        <Link to="/" className="flex items-center gap-2 px-1 font-semibold md:mb-4 md:px-2 md:pt-1 md:text-base">
          <img src="/icon.svg" alt="" width={22} height={22} className="shrink-0" />
          <span className="max-sm:sr-only">Fettle</span>
        </Link>
        <nav aria-label="Pages" className="flex flex-1 gap-1 md:flex-col">
          {PAGES.map(({ to, label, Icon }) => (
            <Link
              key={to}
              to={to}
              activeOptions={{ exact: to === "/", includeSearch: false }}
              className="flex items-center gap-2 rounded-md px-2 py-1.5 text-soft hover:bg-raised"
              activeProps={{ className: "bg-raised !text-ink font-medium" }}
            >
              <Icon size={16} aria-hidden className="max-sm:hidden" />
              {label}
            </Link>
          ))}
        </nav>
        <div className="flex items-center md:flex-col md:items-stretch md:gap-1">
          <button type="button" className="flex items-center gap-2 rounded-md px-2 py-1.5 text-soft hover:bg-raised" onClick={() => setPalette(true)}>
            <Search size={16} aria-hidden />
            <span className="max-md:sr-only">Go to…</span>
            <kbd className="ml-auto rounded border border-line px-1 text-xs max-md:hidden" aria-hidden>Ctrl K</kbd>
          </button>
          <button type="button" className="flex items-center gap-2 rounded-md px-2 py-1.5 text-soft hover:bg-raised" onClick={() => { turnTheme(); setLook(theme()); }}>
            <Theme size={16} aria-hidden />
            <span className="max-md:sr-only">{look === "dark" ? "Light colours" : "Dark colours"}</span>
          </button>
          <button type="button" className="flex items-center gap-2 rounded-md px-2 py-1.5 text-soft hover:bg-raised" onClick={signOut}>
            <LogOut size={16} aria-hidden />
            <span className="max-md:sr-only">Sign out</span>
          </button>
          <span role="status" className={`flex items-center gap-2 px-2 py-1.5 text-xs ${link === "live" ? "text-good" : "text-warn"}`}>
            {link === "live" ? <Wifi size={14} aria-hidden /> : <WifiOff size={14} aria-hidden />}
            <span className="max-sm:sr-only">{{ live: "Live", connecting: "Connecting", lost: "Not live, trying again", ended: "Ended" }[link]}</span>
          </span>
        </div>
      </header>
      <main id="main" ref={main} tabIndex={-1} className="min-w-0 flex-1 outline-none">
        <Outlet />
      </main>
      {palette && (
        <Palette
          close={() => setPalette(false)}
          go={(to) => {
            setPalette(false);
            void navigate({ to });
          }}
        />
      )}
    </div>
  );
}

/** One feed for the whole page: whatever happens makes what is shown be read again. */
function useFeed(): Wire {
  const queries = useQueryClient();
  const [link, setLink] = useState<Wire>("connecting");
  useEffect(() => {
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const refresh = () => {
      timer ??= setTimeout(() => {
        timer = undefined;
        for (const name of ["tasks", "overview", "dead-jobs"]) void queries.invalidateQueries({ queryKey: [name] });
      }, REFRESH_MS);
    };
    const begin = async () => {
      let after: number | undefined;
      while (after === undefined && !stop.signal.aborted) {
        try {
          after = (await get.overview()).newest_event;
        } catch {
          setLink("lost");
          await new Promise((done) => setTimeout(done, 2_000));
        }
      }
      if (after !== undefined) {
        await follow("/api/v1/events", after, stop.signal, {
          event: refresh,
          link: (now) => {
            setLink(now);
            if (now === "live") refresh();
          },
        });
      }
    };
    void begin();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [queries]);
  return link;
}
